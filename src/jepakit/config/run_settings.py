"""The settings `run.*`: how a run is run."""

from typing import Literal

from pydantic import Field, model_validator

from jepakit.core.settings import Settings


class RunSettings(Settings):
    """How a run is run: nothing here is meant to change what is learnt."""

    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 where the device computes in it")
    compile: bool = Field(False, description="compile the blocks (worth it on CUDA)")
    fixed_rows: bool = Field(
        False, description="with compile: pad packed batches to one number of rows, so that CUDA replays graphs of the blocks"
    )
    recompute: bool = Field(False, description="keep no activations inside blocks, compute them again in the backward pass")
    threads: int | None = Field(None, ge=1, description="CPU threads of the model; none: all cores")
    loader_threads: int = Field(2, ge=1, description="threads that decode images")
    read_timeout_seconds: float = Field(60.0, gt=0, description="an image that is not read by then counts as unreadable")
    log_every_steps: int = Field(10, ge=1, description="steps between lines of metrics.jsonl")
    save_every_steps: int = Field(500, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="how many checkpoints are kept")
    keep_every_steps: int | None = Field(
        None, ge=1, description="steps between snapshots of the encoder, all of which are kept, as RUN@STEP; none: no snapshots"
    )
    probe_images: int = Field(512, ge=0, description="images of the look at the encoder during the run: kNN or RankMe; 0: none")
    probe_every_epochs: int | None = Field(None, ge=1, description="passes between looks; none: under 3 % of the run's work")
    timeout_seconds: float = Field(
        600.0, gt=0, description="of several processes: one that does not answer the others for so long ends the run"
    )
    sharding: Literal["full"] | None = Field(
        None, description="of several processes: each has all weights, or (full) a part (FSDP2), for encoders past a GPU's memory"
    )
    tensorboard: bool = Field(False, description="write tensorboard/ too (extra 'tensorboard')")
    wandb: bool = Field(False, description="send metrics to Weights & Biases too, offline without its key (extra 'wandb')")

    @model_validator(mode="after")
    def _compiled(self) -> "RunSettings":
        if self.fixed_rows and not self.compile:
            raise ValueError("fixed_rows is for compiled blocks; set run.compile=true too, or run.fixed_rows=false")
        return self
