"""What a recoding did."""

from dataclasses import dataclass, field

from unic_cache.config import RecodeConfig


@dataclass
class Summary:
    """What a run did."""

    units: int = 0  # of teachers, recoded
    skipped: int = 0  # units that the target had before
    views: int = 0  # units of kept pixels, copied
    before: int = 0  # bytes of the recoded units in the source
    after: int = 0  # bytes of the same in the target
    fidelity: dict[str, dict[str, float]] = field(default_factory=dict)  # teacher -> token kind -> cosine to the source
    to_teacher: dict[str, dict[str, float]] = field(default_factory=dict)  # estimated cosine to the teacher

    def add(self, other: "Summary") -> None:
        """Count what another worker did."""
        for name in ("units", "skipped", "views", "before", "after"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.fidelity |= other.fidelity
        self.to_teacher |= other.to_teacher

    def lines(self, config: RecodeConfig) -> list[str]:
        """The summary for people."""
        views = f" and {self.views} of kept pixels" if self.views else ""
        share = f", {100 * self.after / self.before:,.0f} %" if self.before else ""
        lines = [
            f"{self.units} units{views} of {config.source} recoded into {config.target}: {self.before / 1e6:,.1f} MB "
            f"before, {self.after / 1e6:,.1f} MB after{share}; {self.skipped} units were there already"
        ]
        if config.quality is not None and self.after >= self.before > 0:
            lines.append(f"no smaller: a quality of {config.quality} saves bytes only below that of {config.source}")
        for name, found in self.fidelity.items():
            each = (f"{kind} {x:.5f} (to the teacher {self.to_teacher[name][kind]:.5f})" for kind, x in found.items())
            lines.append(f"{name}: cosine to the source {', '.join(each)}")
        return lines
