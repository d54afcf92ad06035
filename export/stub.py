"""A world action model that knows nothing: six small graphs of the right boundary, without torch or training.

For tests of everything around a model. Its arithmetic is simple enough to be done again by hand, as
tests/test_wam.py does, and it uses every input, so a forgotten one shows.
"""

from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from dzedge import bundle
from dzedge.minisign import SecretKey

F, K, C, H, J, S, W, D, HD = 4, 7, 10, 8, 6, 2, 8, 5, 3
"""Frames, tokens, channels, horizon, joints, window slots, words, text width, head width; 1 layer, 1 head."""
HEIGHT, WIDTH = 72, 96
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
VOCABULARY = {
    word: i
    for i, word in enumerate(
        ("reach", "press", "push", "the", "red", "green", "blue", "cube", "left", "right"), start=1
    )
}
TEST_SECRET = Path(__file__).with_name("test.key")

GRAPHS = {
    "text": f"""(int64[1,{W}] words) => (float[1,1,{D}] text)
        {{ ids = Cast<to=1>(words)  row = MatMul(ids, w_text)  shape = Constant<value_ints=[1,1,{D}]>()
           text = Reshape(row, shape) }}""",
    "frame_encoder": f"""(float[1,3,{HEIGHT},{WIDTH}] image) => (float[1,{K},{C}] latent)
        {{ axes = Constant<value_ints=[2,3]>()  mean = ReduceMean<keepdims=0>(image, axes)
           row = MatMul(mean, w_image)  shape = Constant<value_ints=[1,{K},{C}]>()
           latent = Reshape(row, shape) }}""",
    "prefill": f"""(float[1,{K},{C}] latent) => (float[1,1,{K},{HD}] key, float[1,1,{K},{HD}] value)
        {{ shape = Constant<value_ints=[1,1,{K},{C}]>()  tokens = Reshape(latent, shape)
           key = MatMul(tokens, w_key)  value = MatMul(tokens, w_value) }}""",
    "video_step": f"""(float[1,{F},{K},{C}] video, float[1,{K},{C}] latent, float[{S},1,1,{K},{HD}] key,
          float[{S},1,1,{K},{HD}] value, float[1,{S}] slot_pos, float[1,{S}] valid, float[1,1,{D}] text,
          float[1] t_video)
        => (float[1,{F},{K},{C}] v_video, float[1,1,{K},{HD}] key_video, float[1,1,{K},{HD}] value_video)
        {{ rows = Add(key, value)  inner = Constant<value_ints=[1,2,3,4]>()
           slot = ReduceMean<keepdims=0>(rows, inner)
           one = Constant<value_float=1.0>()  half = Constant<value_float=0.5>()
           two = Constant<value_float=2.0>()  near = Add(two, slot_pos)  weight = Mul(valid, near)
           seen = Mul(weight, slot)  sight = ReduceSum<keepdims=0>(seen)  words = ReduceSum<keepdims=0>(text)
           drive = Add(sight, words)
           frame = Constant<value_ints=[1,1,{K},{C}]>()  now = Reshape(latent, frame)  goal = Mul(now, half)
           gap = Sub(goal, video)  late = Mul(t_video, half)  pace = Sub(one, late)  moved = Mul(gap, pace)
           v_video = Add(moved, drive)
           first = Constant<value_ints=[1]>()  mean = ReduceMean(video, first)
           bare_key = MatMul(mean, w_key)  key_video = Add(bare_key, t_video)
           value_video = MatMul(mean, w_value) }}""",
    "action_step": f"""(float[1,{H},{J}] action, float[1,{H},{J}] prefix, float[1,{H}] prefix_mask,
          float[1,{J}] state, float[1,1,{K},{HD}] key_video, float[1,1,{K},{HD}] value_video,
          float[1] t_action)
        => (float[1,{H},{J}] v_action)
        {{ rows = Add(key_video, value_video)  plan = ReduceMean<keepdims=0>(rows)
           body = ReduceSum<keepdims=0>(state)  goal = Add(plan, body)
           free = Sub(goal, action)  timed = Add(free, t_action)
           one = Constant<value_float=1.0>()  left = Sub(one, t_action)  held = Sub(prefix, action)
           pinned = Div(held, left)
           last = Constant<value_ints=[2]>()  mask = Unsqueeze(prefix_mask, last)  rest = Sub(one, mask)
           first = Mul(mask, pinned)  second = Mul(rest, timed)  v_raw = Add(first, second)
           v_action = Add(v_raw, w_bias) }}""",
    "frame_decoder": f"""(float[1,{K},{C}] latent) => (float[1,3,{HEIGHT},{WIDTH}] image)
        {{ flat = Constant<value_ints=[1,{K * C}]>()  row = Reshape(latent, flat)
           colour = MatMul(row, w_colour)  soft = Tanh(colour)
           pixel = Constant<value_ints=[1,3,1,1]>()  dot = Reshape(soft, pixel)
           size = Constant<value_ints=[1,3,{HEIGHT},{WIDTH}]>()  image = Expand(dot, size) }}""",
}


def weights(bias: float = 0.0) -> dict[str, NDArray[np.float32]]:
    """The stub's weights by name. bias: added to every action velocity; nan makes every chunk nan."""
    rng = np.random.default_rng(7)
    shapes = {
        "w_text": (W, D),
        "w_image": (3, K * C),
        "w_key": (C, HD),
        "w_value": (C, HD),
        "w_colour": (K * C, 3),
    }
    scaled = {name: rng.standard_normal(shape) * 0.05 for name, shape in shapes.items()}
    scaled["w_bias"] = np.array([bias])
    return {name: array.astype(np.float32) for name, array in scaled.items()}


def model(name: str, bias: float = 0.0) -> bytes:
    """One graph as an ONNX file."""
    header = f'<ir_version: 10, opset_import: ["": 20]> {name} '
    parsed = onnx.parser.parse_model(header + GRAPHS[name])
    used = {tensor for node in parsed.graph.node for tensor in node.input}
    parsed.graph.initializer.extend(
        numpy_helper.from_array(array, key) for key, array in weights(bias).items() if key in used
    )
    onnx.checker.check_model(parsed)
    data: bytes = parsed.SerializeToString()
    return data


def section() -> bundle.Section:
    """The manifest's `dzedge` section of a stub."""

    def table(*shape: int, value: float) -> object:
        return np.full(shape, value).tolist()

    statistics = {
        "action_std": table(H, J, value=0.02),
        "state_mean": table(J, value=0.1),
        "state_std": table(J, value=0.7),
        "residual_std": table(F, K, C, value=0.3),
        "latent_mean": table(K, C, value=0.05),
        "latent_std": table(K, C, value=0.2),
    }
    graphs = {
        name: bundle.Graph(variants=(bundle.Variant(file=f"{name}.fp32.onnx", precision="fp32", ep="any", isa="any"),))
        for name in GRAPHS
    }
    return bundle.Section(
        family="wam",
        model_id="stub",
        version=1,
        min_runtime="0.1.0",
        robot="so101-sim",
        joints=JOINTS,
        opset={"ai.onnx": 20},
        image=bundle.Image(height=HEIGHT, width=WIDTH),
        horizon=H,
        dt_ns=100_000_000,
        execute=4,
        max_prefix=3,
        video=bundle.Video(
            frames=F,
            frame_dt_ns=200_000_000,
            history_ns=(200_000_000, 0),
            tokens=K,
            channels=C,
            token_names=("arm", "red", "green", "blue", "yellow", "magenta", "cyan"),
        ),
        window=bundle.Window(slots=S, layers=1, heads=1, head_dim=HD),
        language=bundle.Language(words=W, vocabulary=VOCABULARY),
        statistics=msgspec.convert(statistics, bundle.Statistics),
        samplers=("video_first(1,1)", "joint(4)", "flash(1)"),
        graphs=graphs,
    )


def write(folder: Path, changed: bundle.Section | None = None, bias: float = 0.0) -> Path:
    """Write and sign (with the test key) a stub bundle. changed: another section than `section()`."""
    folder.mkdir(parents=True)
    for name in GRAPHS:
        (folder / f"{name}.fp32.onnx").write_bytes(model(name, bias))
    secret = SecretKey.decode(TEST_SECRET.read_text(encoding="ascii"), str(TEST_SECRET))
    bundle.pack(folder, changed or section(), secret, created="20261122T000000Z", name="stub")
    return folder
