"""A user's own package with two stages, which count how often they run; see the fixture `shouting`."""

from __future__ import annotations

import sys

PACKAGE = {
    "__init__.py": "",
    "helper.py": "def shout(text):\n    return text.upper()\n",
    "word/__init__.py": """
        from irpipe.pipeline.stage import Config, FilePath, Stage, setting
        class WordConfig(Config):
            text: str = setting("hello", meaning="What to say.", source="nobody")
            loud: bool = setting(False, role="neutral", meaning="Whether to shout.")
            workers: int = setting(1, role="execution", meaning="How many.")
            path: FilePath | None = setting(None, role="external", meaning="Where more words are.")
        STAGE = Stage(name="word", version=1, writes="word", config=WordConfig, run="shouting.word.run:run")
    """,
    "word/run.py": """
        from irpipe.pipeline.stage import Report, Rows
        from shouting.helper import shout
        RUNS = []
        def run(config, inputs, out, context):
            RUNS.append(config.text)
            more = context.sources["path"][0].read_text() if config.path else ""
            (out / "word.txt").write_text((shout(config.text) if config.loud else config.text) + more)
            return Report(Rows(1, 1, 0), {"length": len(config.text)})
    """,
    "count/__init__.py": """
        from irpipe.pipeline.stage import Config, Stage, setting
        class CountConfig(Config):
            times: int = setting(1, ge=1, meaning="How often to count.")
        STAGE = Stage(name="count", version=1, reads=("word",), writes="count", config=CountConfig,
                      run="shouting.count.run:run")
    """,
    "count/run.py": """
        from irpipe.pipeline.stage import Report, Rows
        RUNS = []
        def run(config, inputs, out, context):
            RUNS.append(config.times)
            (out / "count.txt").write_text(str(len(inputs["word"].file("word.txt").read_text()) * config.times))
            return Report(Rows(2, 1, 1))
    """,
}


def runs(name: str) -> list[object]:
    module = sys.modules.get(f"shouting.{name}.run")
    return list(module.RUNS) if module else []
