"""Who receives. A new kind of student is a recipe part, a builder and a line here."""

from edgeslm.students import build

BUILDERS = {"depth": build.by_depth, "width": build.by_width, "copy": build.copied, "scratch": build.from_scratch}
