"""Imported beside diffusers, makes it load exported folders without ``trust_remote_code=True``:

    import saltus.export.pipelines
    pipe = diffusers.DiffusionPipeline.from_pretrained("FOLDER")

An exported folder carries code. Code that equals, to the letter, what the installed saltus would write is as
trusted as saltus itself; any other still needs ``trust_remote_code=True``.
"""

from saltus.export.folder import is_own
from saltus.teachers.diffusers.trust import trust_folders

__all__: list[str] = []

trust_folders(is_own)
