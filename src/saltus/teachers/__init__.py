"""Teachers: anything that knows a velocity, made ready for a student.

:func:`teacher` takes any callable, with its own path, prediction and clock, onto the student's path;
:func:`probe` asks it a few questions with known answers before training starts; :func:`from_teacher`
starts a student as its teacher, with a second time added. What needs no data but a teacher learns from
:class:`saltus.data.Noise`.

========================================  ======================================================
teacher                                   as a Velocity
========================================  ======================================================
a trained flow map, an exact map          ``teacher(model)``: its ``velocity``
a run folder, or a weights file           ``run = saltus.load("runs/...")``,
                                          ``teacher(run.model, run.interpolant)``
a denoiser, noise or v model              ``teacher(model, VP(), Prediction.NOISE, clock=...)``
a rectified-flow model, t' = 1 the noise  ``teacher(lambda x, t, cond: -model(x, 1 - t, cond))``
a folder of diffusers                     ``teachers.diffusers.open_diffusers(FOLDER).velocity()``
guided, on an interval of times           ``CFG(velocity, w=2.0, interval=(0.1, 0.7))``
guided by a weaker model                  ``AutoGuidance(velocity, weak, w=2.0)``
an exact system                           itself
========================================  ======================================================
"""

from saltus.teachers.foreign import Foreign, teacher
from saltus.teachers.probe import probe
from saltus.teachers.second_time import from_teacher

__all__ = ["Foreign", "from_teacher", "probe", "teacher"]
