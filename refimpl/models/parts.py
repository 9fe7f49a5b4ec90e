"""Parts that several networks share: norms, linear maps, heads and windows, parameters a token."""

from __future__ import annotations

from refimpl.conventions import ConfigError
from refimpl.models.config import Config
from refimpl.models.nodes import Builder
from refimpl.models.stage import Stage


class Parts(Builder):
    """The builder of one configuration; `config` has the size of the images that will run.

    `given` is the configuration on whose grid the parameters live; where the two differ, those
    with an entry a token are interpolated and alpha is rescaled, by nodes like all others
    [SPEC 6.3].
    """

    def __init__(self, given: Config, config: Config):
        first = next(config.stages)
        super().__init__((1, config.channels, *config.image_size), first)
        self.given, self.config = given, config
        _check_windows(given, config)
        self.features: list[str] = []  # the output of each stage in front of its merge
        self.own = next(given.stages)
        # matrices of a binary network have bits in stage "full" alone
        full = config.block == "binary" and config.binarize == "full"
        self.matrix = "binary_matrix" if full else "latent_matrix"

    def enter(self, block: int) -> Stage:
        """Go to the stage of a block."""
        self.stage, self.own = self.config.stage_of(block), self.given.stage_of(block)
        return self.stage

    def channels(self, name: str) -> int:
        """Say how long the last axis of a value is."""
        return self.shapes[name][-1]

    # --- parameters ---

    def per_token(
        self, path: str, role: str, channels: int = 0, patches_only: bool = False
    ) -> str:
        """Declare a parameter with an entry a token, or a vector, which another size interpolates.

        (N,), or (1, N, channels); with `patches_only` N is gh*gw.
        """
        own, new = self.own, self.stage
        tokens = own.num_patches if patches_only else own.num_tokens
        self.param(path, (1, tokens, channels) if channels else (tokens,), role)
        if own.grid == new.grid:
            return path
        grids = {"grid": own.grid, "new_grid": new.grid}
        return self.hidden(f"{path}.resized", "resize_tokens", [], [path], **grids)

    def alpha(self, path: str, shape: tuple[int, ...]) -> str:
        """Declare alpha, which starts at 1 / keys and goes with it."""
        self.param(path, shape, "alpha", start=1 / self.own.num_keys)
        if self.own.num_keys == self.stage.num_keys:
            return path
        factor = self.own.num_keys / self.stage.num_keys
        return self.hidden(f"{path}.rescaled", "rescale", [], [path], factor=factor)

    def attention_params(self, p: str, c: Config, s: Stage) -> dict[str, str]:
        """Declare those of binary attention that are no projection's, in the order of files."""
        self.at(f"{p}.prob", p)
        shape = (s.heads, 1, 1) if c.alpha_scope == "head" else ()
        own = {"alpha": self.alpha(f"{p}.alpha", shape)}
        self.at(f"{p}.scores", p)
        if c.similarity == "haar":
            own["band_weight"] = self.param(f"{p}.band_weight", (2, s.heads), "band_weight")
        own["position_bias"] = self.position_bias(p, s)
        self.at(f"{p}.differential", p)
        for name in ("shortcut", "neighbour") if c.attention == "differential" else ():
            own[name] = self.param(f"{p}.{name}", (s.dim,), name)
        return own

    def position_bias(self, p: str, s: Stage) -> str | None:
        """Declare the table of a windowed attention."""
        if not s.window:
            return None
        shape = ((2 * s.window - 1) ** 2, s.heads)
        return self.param(f"{p}.position_bias", shape, "position_bias")

    # --- operations ---

    def norm(
        self, name: str, p: str, x: str, shell: bool = False, eps: float | None = None
    ) -> str:
        """Add LayerNorm or batch norm of x, whose parameters stand below p."""
        C, op = self.channels(x), f"{self.config.norm}_norm"
        params = [self.param(f"{p}.weight", (C,), "gain"), self.param(f"{p}.bias", (C,), "bias")]
        if op == "batch_norm":
            for leaf in ("running_mean", "running_variance"):
                params.append(self.param(f"{p}.{leaf}", (C,), leaf))
        return self(name, op, [x], params, shell=shell, eps=eps or self.config.norm_eps)

    def linear(
        self, name: str, p: str, x: str, outputs: int, shell: bool = False, bias: bool = True
    ) -> str:
        """Add x W^T, plus b with `bias`, with parameters below p."""
        params = [self.param(f"{p}.weight", (outputs, self.channels(x)), "matrix")]
        if bias:
            params.append(self.param(f"{p}.bias", (outputs,), "bias"))
        return self(name, "linear", [x], params, shell=shell)

    def layer_scale(self, p: str, x: str, *leaves: str, where: str | None = None) -> str:
        """Add x times the first leaf below p, plus the second where there are two."""
        self.at(p, where)
        roles = zip(leaves, ("layer_scale", "bias"))
        params = [self.param(f"{p}.{leaf}", (self.channels(x),), role) for leaf, role in roles]
        return self.hidden(p, "layer_scale", [x], params)

    def cut(self, name: str, x: str, s: Stage, transposed: bool, tap: str = "real") -> str:
        """Cut tokens into windows, where there are any, and heads."""
        if s.window:
            options = {"grid": s.grid, "window": s.window, "shift": s.shift}
            x = self.hidden(f"{name}.windows", "windows", [x], **options)
        return self(name, "split_heads", [x], tap=tap, heads=s.heads, transposed=transposed)

    def join(self, name: str, x: str, s: Stage) -> str:
        """Join heads and windows to tokens again."""
        x = self.hidden(name, "merge_heads", [x])
        if s.window:
            options = {"grid": s.grid, "window": s.window, "shift": s.shift}
            x = self.hidden(f"{name}.grid", "join_windows", [x], **options)
        return x

    def softmax(self, name: str, scores: str, s: Stage, tap: str = "real") -> str:
        """Add softmax over the keys that a query sees [SPEC 6.7]."""
        if not s.shift:
            return self(name, "softmax", [scores], tap=tap)
        options = {"grid": s.grid, "window": s.window, "shift": s.shift}
        return self(name, "window_softmax", [scores], tap=tap, **options)

    def inside(self, p: str, *names: str) -> dict[str, str]:
        """Name the values inside an operation, below p."""
        return {name: f"{p}.{name}" for name in names}


def _check_windows(given: Config, config: Config) -> None:
    for s, (own, new) in enumerate(zip(given.stages, config.stages, strict=True)):
        if own.window != new.window:
            raise ConfigError(
                f"config: image_size {config.image_size} gives stage {s} windows of {new.window}; "
                f"expected {own.window}, for which its position bias was made"
            )
