"""Synthesis: pipelines that make rows out of seeds, topics, rows or nothing. One file each, over the loop of `loop.py`.

To add one, write its file (`base.Pipeline`) and name it in the union below: recipes and ``posttrain synth`` accept it.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator

from posttrain.synth.alpaca import Alpaca
from posttrain.synth.evolve import Evolve
from posttrain.synth.magpie import Magpie
from posttrain.synth.preferences import Preferences
from posttrain.synth.self_instruct import SelfInstruct
from posttrain.synth.ultrachat import UltraChat

AnyPipeline = Annotated[SelfInstruct | Alpaca | UltraChat | Magpie | Evolve | Preferences, Discriminator("name")]
"""What a stage's ``pipeline`` may be, told apart by ``name``."""
