"""Wrong versions of the package, one replacement of source text each: (module, right, wrong).

Each text must occur exactly once in its module, else the mutant is out of date. Mutants that no gradient
and no value can tell from the original (a stop-gradient inside another, say) are not here.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["MUTANTS", "Mutant"]


class Mutant(NamedTuple):
    """One wrong version."""

    module: str
    right: str
    wrong: str


IDENTITIES = (
    (
        "cond) - velocity(x, t, cond)",
        "cond) + velocity(x, t, cond)",
    ),
    ("u + h * du - velocity(x + h * u, t, cond)", "u - h * du - velocity(x + h * u, t, cond)"),
    ("u + h * du - velocity(x + h * u, t, cond)", "u + h * du + velocity(x + h * u, t, cond)"),
    ("u + h * du - velocity(x + h * u, t, cond)", "u + h * du - velocity(x - h * u, t, cond)"),
    ("u + h * du - velocity(x + h * u, t, cond)", "u + h * du - velocity(x + h * u, s, cond)"),
    ("u + h * du - velocity(x + h * u, t, cond)", "u + du - velocity(x + h * u, t, cond)"),
    ("b - u + like(t - s, x) * du", "b + u + like(t - s, x) * du"),
    ("b - u + like(t - s, x) * du", "b - u - like(t - s, x) * du"),
    ("b - u + like(t - s, x) * du", "b - u + du"),
    ("b = velocity(x, s, cond)", "b = velocity(x, t, cond)"),
    ("flow_map(flow_map(x, s, m, cond), m, t, cond)", "flow_map(flow_map(x, m, t, cond), s, m, cond)"),
    ("flow_map(flow_map(x, s, m, cond), m, t, cond) -", "flow_map(flow_map(x, s, m, cond), m, t, cond) +"),
    ("lambda end: flow_map.average(x, s, end, cond)", "lambda end: flow_map.average(x, end, s, cond)"),
    ("flow_map.average(state, start, t, cond)", "flow_map.average(state, t, start, cond)"),
    ("(w, torch.ones_like(s)),", "(w, -torch.ones_like(s)),"),
    ("(w, torch.ones_like(s)),", "(w, torch.zeros_like(s)),"),
    ("(w, torch.ones_like(s)),", "(-w, torch.ones_like(s)),"),
)
TIME_FORM = "u - sg(b - h * du) if self.gradient is Gradient.TARGET else u + h * du - b"
LAGRANGIAN = (
    ("u + h * du - self.end(own", "u - h * du - self.end(own"),
    ("h * du - self.end(own, State(state.x + h * u)", "h * du - self.end(own, State(state.x - h * u)"),
    ("h * du - self.end(own, State(state.x + h * u)", "h * du - self.end(own, State(sg(state.x + h * u))"),
    (TIME_FORM, "u - sg(b + h * du) if self.gradient is Gradient.TARGET else u + h * du - b"),
    (TIME_FORM, "u - (b - h * du) if self.gradient is Gradient.TARGET else u + h * du - b"),
    (TIME_FORM, "u - sg(b - h * du) if self.gradient is Gradient.TARGET else u - h * du - b"),
    (TIME_FORM, "u - sg(b - h * du) if self.gradient is Gradient.TARGET else u + sg(h * du) - b"),
    ("no_grad():\n            b =", "enable_grad():\n            b ="),
    ("b = self.end(own, State(state.x + h * u), t, cond)", "b = self.end(own, State(state.x), t, cond)"),
    (
        "b = self.end(own, State(state.x + h * u), t, cond)",
        "b = self.end(own, State(state.x + h * u), s, cond)",
    ),
    ("h = like(t - s, state.x)", "h = like(s - t, state.x)"),
    ("own, m = self.target or self.student, t - d", "own, m = self.target or self.student, s + d"),
    ("rest, short = like(m - s, state.x)", "rest, short = like(t - s, state.x)"),
    ("sg(b - rest * (u - u_m) / short)", "sg(b + rest * (u - u_m) / short)"),
    ("sg(b - rest * (u - u_m) / short)", "(b - rest * (u - u_m) / short)"),
    ("return self.end(own, middle, m, cond)", "return self.end(own, middle, t, cond)"),
    ("self.interpolant, m, t, cond) - middle.x", "self.interpolant, t, m, cond) - middle.x"),
)
EULERIAN = (
    ("u - sg(v + h * du) if", "u - sg(v - h * du) if"),
    ("u - sg(v + h * du) if", "u - (v + h * du) if"),
    ("u - sg(v + h * du) if", "u - sg(v + du) if"),
    ("else u - h * du - v", "else u + h * du - v"),
    ("u - h * du_ds - (v + h * transport)", "u + h * du_ds - (v + h * transport)"),
    ("u - h * du_ds - (v + h * transport)", "u - h * du_ds - (v - h * transport)"),
    ("u - h * du_ds - (v + h * transport)", "u - sg(h * du_ds) - (v + h * transport)"),
    ("no_grad():\n                _, transport", "enable_grad():\n                _, transport"),
    ("set_grad_enabled(self.gradient is Gradient.FULL", "set_grad_enabled(self.gradient is Gradient.TIME"),
    ("set_grad_enabled(self.gradient is Gradient.FULL and", "set_grad_enabled("),
    ("output.u - sg(v + h * tangent.u)", "output.u - sg(v - h * tangent.u)"),
    ("output.u - sg(v + h * tangent.u)", "output.u - (v + h * tangent.u)"),
    ("output.heads[self.head] - v", "output.heads[self.head] + v"),
    ("w = self.tangent(own, state, s, cond)", "w = self.tangent(own, state, t, cond)"),
    ("v = w if self.velocity is self.tangent else", "v = w if True else"),
    ("h = h * self.warm_up(batch.progress).to(h)", "h = h / self.warm_up(batch.progress).to(h)"),
    ("own, m = self.target or self.student, s + d", "own, m = self.target or self.student, t - d"),
    ("rest, short = like(t - m, state.x)", "rest, short = like(t - s, state.x)"),
    ("rest * (u_m - u) / short", "rest * (u - u_m) / short"),
    ("rest * (u_m - u) / short", "(u_m - u) / short"),
    ("(x_m - state.x) / short", "(state.x - x_m) / short"),
    ("sg((x_m - state.x) / short + rest", "((x_m - state.x) / short + rest"),
    ("u_m = own.average(x_m, m, t, cond)", "u_m = own.average(state.x, m, t, cond)"),
)
COMPOSITION = (
    ("g * first + (1.0 - g) * own", "(1.0 - g) * first + g * own"),
    ("set_grad_enabled(self.gradient is Gradient.FULL and torch.is_grad_enabled())", "enable_grad()"),
    ("set_grad_enabled(self.gradient is Gradient.FULL and torch.is_grad_enabled())", "no_grad()"),
    ("s + gamma * (t - s)", "t - gamma * (t - s)"),
    ("state.x + like(m - s, state.x) * first", "state.x - like(m - s, state.x) * first"),
    ("state.x + like(m - s, state.x) * first", "state.x + like(t - s, state.x) * first"),
    ("own.average(middle, m, t, cond)", "own.average(state.x, m, t, cond)"),
    ("own.average(state.x, s, m, cond)", "own.average(state.x, m, s, cond)"),
    ("middle = self._bounded(", "middle = ("),
    ("y = self._bounded(", "y = ("),
    ("x.clamp(-self.clip, self.clip)", "x.clamp(max=self.clip)"),
)
OTHERS = (
    ("objectives.diagonal", "self.weight(output.u - v, span)", "self.weight(output.u + v, span)"),
    ("objectives.diagonal", "with torch.no_grad()", "with torch.enable_grad()"),
    ("objectives.diagonal", "output.heads[self.head] - v", "output.heads[self.head] + v"),
    ("objectives.endpoint", "with torch.no_grad()", "with torch.enable_grad()"),
    ("objectives.endpoint", "(end - state.x) / like(t - s, end)", "(end - state.x)"),
    ("objectives.sum", "term.weight * part.weight", "term.weight"),
    ("objectives.sum", 'side="right"', 'side="left"'),
    ("slots", "return own.velocity(state.x, t, cond)", "return -own.velocity(state.x, t, cond)"),
    ("slots", "own.evaluate(state.x, t, t, cond)", "own.evaluate(state.x, 0.0 * t, t, cond)"),
    ("slots", "(1.0 - self.w - self.k) * free", "(1.0 - self.w + self.k) * free"),
    (
        "guidance",
        "return free + w * (self.velocity",
        "return free - w * (self.velocity",
    ),
    (
        "guidance",
        "(self.velocity(x, t, cond) - weak)",
        "self.velocity(x, t, cond)",
    ),
    ("legs", "return (x + like(h, x) *", "return (x - like(h, x) *"),
    ("legs", "x0 = (dbeta * x - beta * b) / det", "x0 = (beta * x - beta * b) / det"),
    ("legs", "x1 = (alpha * b - dalpha * x) / det", "x1 = (alpha * b - alpha * x) / det"),
    ("legs", "path(interpolant, state.x0, state.x1, m)[0]", "path(interpolant, state.x0, state.x1, s)[0]"),
    ("legs", "x, start = own(x, start, end, cond), end", "x, start = own(x, s, end, cond), end"),
    ("states", "x, velocity = path(interpolant, x0, x1, s)", "x, velocity = path(interpolant, x1, x0, s)"),
    ("interpolants", "return (a * x0 + b * x1).to(x1.dtype)", "return (a * x0 + db * x1).to(x1.dtype)"),
    ("interpolants", "(da * x0 + db * x1).to(x1.dtype)", "(da * x0 + b * x1).to(x1.dtype)"),
    ("interpolants", "(da * x0 + db * x1).to(x1.dtype)", "(a * x0 + db * x1).to(x1.dtype)"),
    ("interpolants", "Coefficients(1.0 - t, t, -one, one)", "Coefficients(1.0 - t, t, one, one)"),
    ("interpolants", "Coefficients(1.0 - t, t, -one, one)", "Coefficients(t, 1.0 - t, one, -one)"),
    ("interpolants", "Coefficients(c, s, -rate * s, rate * c)", "Coefficients(c, s, rate * s, rate * c)"),
    ("interpolants", "Coefficients(c, s, -rate * s, rate * c)", "Coefficients(c, s, -s, c)"),
    ("interpolants", "0.5 * tau * spread + 0.5 * self.b_min", "-0.5 * tau * spread - 0.5 * self.b_min"),
    ("interpolants", "dbeta = rate * torch.sin(phi) / top", "dbeta = -rate * torch.sin(phi) / top"),
    ("interpolants", "** (self.rho - 1.0) * (low - high)", "** (self.rho - 1.0) * (high - low)"),
    ("predictions", "determinant = c.alpha * q - c.beta * p", "determinant = c.alpha * q + c.beta * p"),
    ("predictions", "(q_new * c.alpha - p_new * c.beta)", "(q_new * c.alpha + p_new * c.beta)"),
    ("predictions", "(p_new * q - q_new * p)", "(p_new * p - q_new * q)"),
    (
        "predictions",
        "lambda c: (c.dalpha, c.dbeta)",
        "lambda c: (c.dalpha, c.beta)",
    ),
    (
        "predictions",
        "lambda c: (c.beta, -c.alpha)",
        "lambda c: (c.beta, c.alpha)",
    ),
    (
        "predictions",
        "lambda c: (-1.0 / c.alpha",
        "lambda c: (1.0 / c.alpha",
    ),
    (
        "predictions",
        "like(ours.dalpha, x) * x0 +",
        "like(ours.alpha, x) * x0 +",
    ),
    (
        "maps",
        "like(t - s, x) * self.average",
        "like(s - t, x) * self.average",
    ),
    ("maps", "of_x = -rate *", "of_x = rate *"),
    ("maps", "torch.sinc(0.5 * half).square()", "torch.sinc(half).square()"),
    ("maps", "(s * variance - (1.0 - s)) / n2", "(s * variance + (1.0 - s)) / n2"),
    ("maps", "gain = like(self.sigma_data / n, x)", "gain = like(variance / n, x)"),
    ("weights", "value / sg(size + self.c) ** self.p", "value / (size + self.c) ** self.p"),
    ("weights", "value / sg(size + self.c) ** self.p", "value / sg(size + self.c)"),
    ("weights", "error - sg(error) + normalised", "error + sg(error) + normalised"),
    (
        "weights",
        "sg(per_row_norm2(error)) / _size(error)",
        "sg(per_row_norm2(error))",
    ),
    ("weights", "self.factor(span) * value", "value / self.factor(span)"),
    ("weights", "like(span.t - span.s, error) * (error - fixed)", "like(span.d, error) * (error - fixed)"),
    ("weights", "torch.exp(-w) * value + w", "torch.exp(w) * value + w"),
    ("weights", "torch.exp(-w) * value + w", "torch.exp(-w) * value - w"),
    (
        "times",
        "torch.sigmoid(-self.b * sigma)",
        "torch.sigmoid(self.b * sigma)",
    ),
    ("times", "self.q ** -(stage + 1.0) * n", "self.q ** -stage * n"),
    ("times", "1.0 / (n - 1.0)", "1.0 / n"),
    ("times", "self.alpha(progress).to(s) * (t - s)", "self.alpha(progress).to(s) * t"),
    (
        "methods.lsd",
        '"lagrangian", jump, 1.0 - eta, 1.0 - eta',
        '"lagrangian", jump, 1.0 - eta, eta',
    ),
    (
        "methods.psd",
        '"composition", jump, 1.0 - eta, 1.0 - eta',
        '"composition", jump, 1.0 - eta',
    ),
    ("methods.psd", "gradient: Gradient = Gradient.TARGET", "gradient: Gradient = Gradient.FULL"),
    ("methods.mean_flow", "import Data, Slot", "import Own as Data, Slot"),
    ("methods.improved_mean_flow", "tangent=Head(head),", "tangent=Data(),"),
    ("methods.improved_mean_flow", "velocity=Data(),", "velocity=Head(head),"),
    ("methods.shortcut", "times=Dyadic(levels - 1),", "times=Dyadic(levels),"),
    ("methods.shortcut", "clip=clip,", "clip=None,"),
    ("methods.shortcut", "        target,\n", "        student,\n"),
    ("methods.tvm", "Lagrangian(student, target,", "Lagrangian(student, None,"),
    ("methods.consistency_training", "        target,\n", "        student,\n"),
    ("methods.alpha_flow", "span.d / (span.t - span.s)", "(span.t - span.s) / span.d"),
    ("methods.consistency_training", "InStates(Squared())", "Squared()"),
    ("methods.ect", "span.s * (span.s + span.d) / span.d", "span.s * span.s / span.d"),
    ("methods.scm", "torch.cos(_angle(span))", "torch.sin(_angle(span))"),
    ("methods.scm", "a / torch.sin(a).square()", "a / torch.sin(a)"),
    ("methods.scm", "math.pi / 2.0) * (1.0 - span.s)", "math.pi / 2.0) * span.s"),
)
MUTANTS = (
    *(Mutant("identities", *m) for m in IDENTITIES),
    *(Mutant("objectives.lagrangian", *m) for m in LAGRANGIAN),
    *(Mutant("objectives.eulerian", *m) for m in EULERIAN),
    *(Mutant("objectives.composition", *m) for m in COMPOSITION),
    *(Mutant(*m) for m in OTHERS),
)
