"""Charts as Vega-Lite draws them. https://vega.github.io/vega-lite/docs/"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from irpipe.pipeline.view import Chart

_HEIGHT, _ROW = 200, 28  # pixels; the width is that of the page
_SMOOTHED_FROM, _WINDOWS = 60, 20  # a line of so many points is drawn pale, below its running mean over a share of them
_LEGEND = {"orient": "top", "title": None, "columns": 3}
_SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")


def panels(chart: Chart) -> list[tuple[str, dict[str, Any]]]:
    """Title and Vega-Lite specification of each panel of a chart; one without a title where it has no panels."""
    if chart.panel is None:
        return [("", specification(chart, chart.data))]
    panel = chart.panel
    values = dict.fromkeys(row[panel] for row in chart.data)
    return [
        (
            str(value),
            specification(
                replace(chart, y_title=chart.units.get(str(value), chart.y_title)),
                [row for row in chart.data if row[panel] == value],
            ),
        )
        for value in values
    ]


def specification(chart: Chart, data: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The specification of one panel, with the columns that it draws and no others."""
    columns = [name for name in (chart.x, chart.y, chart.colour, chart.low, chart.high, chart.detail) if name]
    spec: dict[str, Any] = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": chart.alt,
        "width": "container",
        "background": None,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": [{name: row[name] for name in columns} for row in data]},
    }
    tooltip = [{"field": name, "type": _type(data, name), "title": name} for name in columns]
    colour = {"color": {"field": chart.colour, "type": "nominal", "legend": _LEGEND}} if chart.colour else {}
    x, y = (
        _titled(_channel(data, chart.x, chart.axes), chart.x_title),
        _titled(_channel(data, chart.y, chart.axes), chart.y_title),
    )
    match chart.mark:
        case "line":
            return spec | {"height": _HEIGHT, "layer": [*_line_layers(chart, data, x, y, colour, tooltip), *_step_layers(chart)]}
        case "points":
            encoding = {"x": x, "y": y, **colour, **_shape(chart), "tooltip": tooltip}
            return spec | {"height": 2 * _HEIGHT, "mark": {"type": "point", "size": 24, "opacity": 0.7}, "encoding": encoding}
        case "bars":
            x = {
                "field": chart.x,
                "type": "ordinal" if _is_number(data, chart.x) else "nominal",
                "sort": None,
                "axis": {"labelAngle": -40},
            }
            y = _titled({"field": chart.y, "type": "quantitative", "stack": "zero"}, chart.y_title)
            return spec | {"height": _HEIGHT, "mark": "bar", "encoding": {"x": x, "y": y, **colour, "tooltip": tooltip}}
        case "intervals":
            return spec | {"height": _ROW * len({row[chart.x] for row in data}), "layer": _interval_layers(chart, tooltip)}


def _line_layers(
    chart: Chart,
    data: Sequence[Mapping[str, Any]],
    x: dict[str, Any],
    y: dict[str, Any],
    colour: dict[str, Any],
    tooltip: list[dict[str, str]],
) -> list[dict[str, Any]]:
    """Lines with a marker for each point; long ones as their running mean, over their own values in pale."""
    lengths = Counter(row[chart.colour] if chart.colour else "" for row in data)
    longest = max(lengths.values(), default=0)
    if longest < _SMOOTHED_FROM:
        marks = {"type": "point", "filled": True, "size": 36}
        encoding = {"x": x, "y": y, **colour}
        return [
            {"mark": {"type": "line", "clip": True}, "encoding": encoding},
            {"mark": marks, "encoding": {**encoding, **_shape(chart), "tooltip": tooltip}},
        ]
    half = longest // _WINDOWS // 2
    mean = {
        "window": [{"op": "mean", "field": chart.y, "as": "running mean"}],
        "frame": [-half, half],
        "sort": [{"field": chart.x}],
        **({"groupby": [chart.colour]} if chart.colour else {}),
    }
    pale = {"type": "line", "clip": True, "strokeWidth": 1, "opacity": 0.3}
    title = f"{y.get('title') or chart.y}: each step pale, and the running mean"
    smooth = {"x": x, "y": {**y, "field": "running mean", "title": title}, **colour, "tooltip": tooltip}
    return [
        {"mark": pale, "encoding": {"x": x, "y": {**y, "title": title}, **colour}},
        {"transform": [mean], "mark": {"type": "line", "clip": True}, "encoding": smooth},
    ]


def _shape(chart: Chart) -> dict[str, Any]:
    """A marker for each colour, for those who do not tell the colours apart."""
    if chart.colour is None:
        return {}
    return {"shape": {"field": chart.colour, "type": "nominal", "scale": {"range": list(_SHAPES)}, "legend": _LEGEND}}


def _step_layers(chart: Chart) -> list[dict[str, Any]]:
    """An upright line with a label for each marked step."""
    layers = []
    for name, step in chart.steps.items():
        data: dict[str, Any] = {"data": {"values": [{"value": step, "is": name}]}}
        position = {"x": {"field": "value", "type": "quantitative"}}
        label = {"text": {"field": "is", "type": "nominal"}, "y": {"value": -5}}
        layers += [
            data | {"mark": {"type": "rule", "strokeDash": [4, 4], "opacity": 0.8}, "encoding": position},
            data | {"mark": {"type": "text", "fontSize": 11}, "encoding": position | label},
        ]
    return layers


def _interval_layers(chart: Chart, tooltip: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The layers of intervals: a line and a point for each, and a labelled line for each reference."""
    category = {"field": chart.x, "type": "nominal", "sort": None, "title": None}
    value = {"field": chart.y, "type": "quantitative", "scale": {"zero": False}, "axis": {"tickCount": 8}}
    interval = {"x": {**value, "field": chart.low, "title": chart.y}, "x2": {"field": chart.high}}
    point = {"type": "point", "filled": True, "size": 70}
    layers: list[dict[str, Any]] = [
        {"mark": {"type": "rule", "strokeWidth": 2}, "encoding": {"y": category, **interval, "tooltip": tooltip}},
        {"mark": point, "encoding": {"y": category, "x": value, "tooltip": tooltip}},
    ]
    for number, (name, reference) in enumerate(chart.references.items()):
        data: dict[str, Any] = {"data": {"values": [{"value": reference, "is": f"{name}: {reference:.4g}"}]}}
        position = {"x": {"field": "value", "type": "quantitative"}}
        label = {"text": {"field": "is", "type": "nominal"}, "y": {"value": -4 - 13 * number}}  # none over another
        layers += [
            data | {"mark": {"type": "rule", "strokeDash": [4, 4], "opacity": 0.8}, "encoding": position},
            data | {"mark": {"type": "text", "fontSize": 11}, "encoding": position | label},
        ]
    return layers


def _channel(data: Sequence[Mapping[str, Any]], name: str, axes: bool) -> dict[str, Any]:
    channel: dict[str, Any] = {"field": name, "type": _type(data, name), "scale": {"zero": False}}
    return channel if axes else channel | {"axis": None}


def _titled(channel: dict[str, Any], title: str) -> dict[str, Any]:
    return channel | {"title": title} if title else channel


def _type(data: Sequence[Mapping[str, Any]], name: str) -> str:
    return "quantitative" if _is_number(data, name) else "nominal"


def _is_number(data: Sequence[Mapping[str, Any]], name: str) -> bool:
    return all(isinstance(row[name], int | float) or row[name] is None for row in data)
