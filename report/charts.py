"""Charts as Vega-Lite draws them. https://vega.github.io/vega-lite/docs/"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from irpipe.pipeline.view import Chart

_HEIGHT, _ROW = 200, 28  # pixels; the width is that of the page


def panels(chart: Chart) -> list[tuple[str, dict[str, Any]]]:
    """Title and Vega-Lite specification of each panel of a chart; one without a title where it has no panels."""
    if chart.panel is None:
        return [("", specification(chart, chart.data))]
    values = dict.fromkeys(row[chart.panel] for row in chart.data)
    return [(str(value), specification(chart, [row for row in chart.data if row[chart.panel] == value])) for value in values]


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
    colour = (
        {"color": {"field": chart.colour, "type": "nominal", "legend": {"orient": "top", "title": None}}} if chart.colour else {}
    )
    x, y = (
        _titled(_channel(data, chart.x, chart.axes), chart.x_title),
        _titled(_channel(data, chart.y, chart.axes), chart.y_title),
    )
    match chart.mark:
        case "line":
            marked = len(data) <= 60
            encoding = {"x": x, "y": y, **colour, "tooltip": tooltip}
            return spec | {"height": _HEIGHT, "mark": {"type": "line", "point": marked, "clip": True}, "encoding": encoding}
        case "points":
            encoding = {"x": x, "y": y, **colour, "tooltip": tooltip}
            return spec | {"height": 2 * _HEIGHT, "mark": {"type": "circle", "size": 24, "opacity": 0.7}, "encoding": encoding}
        case "bars":
            x = {
                "field": chart.x,
                "type": "ordinal" if _is_number(data, chart.x) else "nominal",
                "sort": None,
                "axis": {"labelAngle": -40},
            }
            y = {"field": chart.y, "type": "quantitative", "stack": "zero"}
            return spec | {"height": _HEIGHT, "mark": "bar", "encoding": {"x": x, "y": y, **colour, "tooltip": tooltip}}
        case "intervals":
            return spec | {"height": _ROW * len({row[chart.x] for row in data}), "layer": _interval_layers(chart, tooltip)}


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
