"""The metrics of all experts in one table, as a page that needs nothing else."""

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_NONE = "–"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 1.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; white-space: nowrap; }
th, td { padding: .4rem .9rem; border-bottom: 1px solid #ddd; text-align: right; font-variant-numeric: tabular-nums; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
th.text, td.text { text-align: left; }
.unit { display: block; font-weight: normal; font-size: .85em; color: #666; }
p { max-width: 60rem; color: #444; }
"""

_STOPPED = {
    "max_steps": "all steps done",
    "privacy_budget": "privacy budget spent",
    "early_stopping": "no more progress",
}

_TRAINED = (
    ("Expert", "", lambda metrics: metrics["adapter_name"]),
    ("Stage", "", lambda metrics: metrics["stage"]),
    ("Validation loss, start", "nats per token", lambda metrics: _number(metrics["first_val_loss"], ".3f")),
    ("Validation loss, end", "nats per token", lambda metrics: _number(metrics["final_val_loss"], ".3f")),
    ("Training loss, end", "nats per token", lambda metrics: _number(metrics["final_loss"], ".3f")),
    ("Steps", "", lambda metrics: _number(metrics["total_steps"], ",d")),
    ("Stopped because", "", lambda metrics: _STOPPED.get(metrics["stopped_reason"], metrics["stopped_reason"])),
    ("Examples seen", "", lambda metrics: _number(metrics["examples_seen"], ",d")),
    ("Tokens seen", "", lambda metrics: _number(metrics["tokens_seen"], ",d")),
    ("Time", "seconds", lambda metrics: _number(metrics["total_time_seconds"], ",.1f")),
)

_PRIVACY = (
    ("Expert", "", lambda metrics: metrics["adapter_name"]),
    ("Stage", "", lambda metrics: metrics["stage"]),
    ("ε spent", "all stages so far", lambda metrics: _number(metrics["privacy"]["epsilon"], ".2f")),
    ("ε budget", "", lambda metrics: _number(metrics["privacy"].get("target_epsilon"), ".2f")),
    ("δ", "", lambda metrics: _number(metrics["privacy"].get("delta"), ".0e")),
    ("Noise multiplier", "", lambda metrics: _number(metrics["privacy"].get("noise_multiplier"), ".3g")),
    ("Clipping norm", "", lambda metrics: _number(metrics["privacy"].get("max_grad_norm"), ".3g")),
    ("Sampling rate", "", lambda metrics: _number(metrics["privacy"].get("sample_rate"), ".3%")),
    ("Why no ε", "", lambda metrics: metrics["privacy"].get("reason") or _NONE),
)

_TEXT = ("Expert", "Stage", "Stopped because", "Why no ε")

Column = tuple[str, str, Callable[[Mapping[str, Any]], str]]


def metrics_page(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Return an HTML page with two tables, training and privacy, one row for each training_metrics.json given."""
    body = "\n".join(
        [
            "<h1>Metrics</h1>",
            "<h2>Training</h2>",
            _table(_TRAINED, metrics),
            "<h2>Privacy</h2>",
            _table(_PRIVACY, metrics),
            "<p>These numbers were measured on the training and validation records. They are as private as the data: "
            "only what stands in a package's privacy receipt may be passed on.</p>",
        ]
    )
    head = f'<head><meta charset="utf-8"><title>Metrics</title><style>{_STYLE}</style></head>'
    return f'<!DOCTYPE html>\n<html lang="en">\n{head}\n<body>\n{body}\n</body>\n</html>\n'


def _table(columns: Sequence[Column], metrics: Sequence[Mapping[str, Any]]) -> str:
    heads = "".join(_head(title, unit) for title, unit, _ in columns)
    rows = "\n".join(f"<tr>{''.join(_cell(title, text(one)) for title, _, text in columns)}</tr>" for one in metrics)
    return f'<div class="wide"><table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'


def _head(title: str, unit: str) -> str:
    note = f'<span class="unit">{html.escape(unit)}</span>' if unit else ""
    return f"<th{_text_class(title)}>{html.escape(title)}{note}</th>"


def _cell(title: str, text: str) -> str:
    return f"<td{_text_class(title)}>{html.escape(text)}</td>"


def _text_class(title: str) -> str:
    return ' class="text"' if title in _TEXT else ""


def _number(value: float | None, form: str) -> str:
    return _NONE if value is None else format(value, form)
