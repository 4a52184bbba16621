"""A user's own package with stages that write words, and stages that read several."""

CHOIR = {
    "__init__.py": "",
    "word/__init__.py": """
        from irpipe.pipeline.stage import Config, Group, Stage, group, setting
        class Voice(Group):
            '''How it is said.'''
            loud: bool = setting(False, meaning="Whether to shout.")
            times: int = setting(1, ge=1, meaning="How often.", source="nobody")
            workers: int = setting(1, role="execution", meaning="How many.")
        class WordConfig(Config):
            text: str = setting("hello", meaning="What to say.")
            ending: str = setting("!", meaning="Ends what is shouted.")
            voice: Voice = group(Voice)
            def unused(self):
                return {} if self.voice.loud else {"ending": "nothing is loud", "voice.workers": "nothing is loud"}
        STAGE = Stage(name="word", version=1, writes="word", config=WordConfig, run="choir.word.run:run")
    """,
    "word/run.py": """
        from irpipe.pipeline.stage import Report, Rows
        def run(config, inputs, out, context):
            text = config.text.upper() + config.ending if config.voice.loud else config.text
            (out / "word.txt").write_text(text * config.voice.times)
            return Report(Rows(1, 1, 0), {"length": {"letters": len(text * config.voice.times)}})
    """,
    "echo/__init__.py": """
        from irpipe.pipeline.stage import Config, Stage, setting
        class EchoConfig(Config):
            text: str = setting("echo", meaning="What to say after it.")
        STAGE = Stage(name="echo", version=1, reads=("word",), writes="word", config=EchoConfig, run="choir.echo.run:run")
    """,
    "echo/run.py": """
        from irpipe.pipeline.stage import Report, Rows
        def run(config, inputs, out, context):
            (out / "word.txt").write_text(inputs["word"].file("word.txt").read_text() + config.text)
            return Report(Rows(1, 1, 0))
    """,
    "song/__init__.py": """
        from irpipe.pipeline.stage import Config, Many, Stage
        class SongConfig(Config):
            pass
        STAGE = Stage(name="song", version=1, reads=(Many("word"),), writes="song", config=SongConfig, run="choir.song.run:run")
    """,
    "song/run.py": """
        from irpipe.pipeline.stage import Report, Rows
        def run(config, inputs, out, context):
            words = {node: word.file("word.txt").read_text() for node, word in inputs.all("word").items()}
            (out / "song.txt").write_text(" ".join(f"{node}:{word}" for node, word in words.items()))
            return Report(Rows(len(words), len(words), 0))
    """,
}


CHOIR |= {
    "rhyme/__init__.py": """
        from irpipe.pipeline.stage import Config, Stage
        class RhymeConfig(Config):
            pass
        STAGE = Stage(name="rhyme", version=1, reads=("song",), reads_if_upstream=("word",), writes="rhyme",
                      config=RhymeConfig, run="choir.rhyme.run:run")
    """,
    "rhyme/run.py": """
        from irpipe.pipeline.stage import Report, Rows
        def run(config, inputs, out, context):
            (out / "rhyme.txt").write_text(inputs["word"].file("word.txt").read_text())
            return Report(Rows(1, 1, 0))
    """,
    "drum/__init__.py": """
        from irpipe.pipeline.stage import Config, Stage
        class DrumConfig(Config):
            pass
        STAGE = Stage(name="drum", version=1, writes="beat", processes=True, config=DrumConfig, run="choir.drum.run:run")
    """,
    "drum/run.py": """
        from irpipe.pipeline.processes import count
        from irpipe.pipeline.stage import Report, Rows
        def run(config, inputs, out, context):
            (out / "beat.txt").write_text(str(count()))
            return Report(Rows(1, 1, 0))
    """,
    "band/__init__.py": """
        from irpipe.pipeline.stage import Config, Stage
        class BandConfig(Config):
            pass
        STAGE = Stage(name="band", version=1, reads=("beat",), writes="band", processes=True, config=BandConfig,
                      run="choir.band.run:run")
    """,
    "band/run.py": """
        from irpipe.pipeline.processes import count
        from irpipe.pipeline.stage import Report, Rows
        def run(config, inputs, out, context):
            (out / "band.txt").write_text(f"{inputs['beat'].file('beat.txt').read_text()} then {count()}")
            return Report(Rows(1, 1, 0))
    """,
}


CHOIR |= {
    "chorus/__init__.py": """
        from irpipe.pipeline.stage import Config, Many, Stage, setting
        class ChorusConfig(Config):
            text: str = setting("and", meaning="What to say between them.")
        STAGE = Stage(name="chorus", version=1, reads=(Many("word"),), writes="word", config=ChorusConfig,
                      run="choir.chorus.run:run")
    """,
    "chorus/run.py": """
        from irpipe.pipeline.stage import Report, Rows
        def run(config, inputs, out, context):
            words = [word.file("word.txt").read_text() for word in inputs.all("word").values()]
            text = config.text.join(words)
            (out / "word.txt").write_text(text)
            return Report(Rows(1, 1, 0), {"letters": len(text)})
    """,
}
