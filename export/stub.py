"""Policies that know nothing, one of each family: small graphs of the right boundary, without torch or training.

For tests of everything around a model. Their arithmetic is simple enough to be done again by hand, as
tests/test_wam.py and its siblings do, and it uses every input, so a forgotten one shows.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from dzedge import bundle
from dzedge.minisign import SecretKey
from dzedge.types import Frame, JointState, Observation

F, K, C, H, J, S, W, D, HD = 4, 7, 10, 8, 6, 2, 8, 5, 3
"""Frames, tokens, channels, horizon, joints, window slots, words, text width, head width; 1 layer, 1 head."""
N, BINS = 2 * K + 2, 256
"""Rows of a context: newest frame, frame before, words, joints; bins of an action token."""
SLOW_NS = 400_000_000
HEIGHT, WIDTH = 72, 96
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
VOCABULARY = {
    word: i
    for i, word in enumerate(
        ("reach", "press", "push", "the", "red", "green", "blue", "cube", "left", "right"), start=1
    )
}
STATE = np.array([0.3, -0.2, 0.5, 0.1, -0.4, 0.9])
"""Joints of `observation`, Shape (J,), [rad]."""
ASKED = "reach the red cube"
TEST_SECRET = Path(__file__).with_name("test.key")

FLOW = """
           free = Sub(goal, action)  timed = Add(free, t_action)
           one = Constant<value_float=1.0>()  left = Sub(one, t_action)  held = Sub(prefix, action)
           pinned = Div(held, left)
           last = Constant<value_ints=[2]>()  mask = Unsqueeze(prefix_mask, last)  rest = Sub(one, mask)
           first = Mul(mask, pinned)  second = Mul(rest, timed)  v_raw = Add(first, second)
           v_action = Add(v_raw, w_bias) }"""
"""Towards `goal`, and towards the prefix where there is one."""
TEXT = f"""(int64[1,{W}] words) => (float[1,1,{D}] text)
        {{ ids = Cast<to=1>(words)  row = MatMul(ids, w_text)  shape = Constant<value_ints=[1,1,{D}]>()
           text = Reshape(row, shape) }}"""
N_WAM = S * K + 1
"""Rows of a world action model's context: of the window's frames, and of language."""
GRAPHS = {
    "text": f"""(int64[1,{W}] words) => (float[1,1,{D}] text, float[1,{K},{D}] place,
          float[1,1,1,{HD}] key_text, float[1,1,1,{HD}] value_text)
        {{ ids = Cast<to=1>(words)  row = MatMul(ids, w_text)  shape = Constant<value_ints=[1,1,{D}]>()
           text = Reshape(row, shape)  tokens = Constant<value_ints=[1,{K},{D}]>()  place = Expand(text, tokens)
           spoken = MatMul(text, w_words)  one_row = Constant<value_ints=[1,1,1,{HD}]>()
           key_text = Reshape(spoken, one_row)  half = Constant<value_float=0.5>()
           value_text = Mul(key_text, half) }}""",
    "modulation": f"""(float[1] t, float[1,1,{D}] text) => (float[1,6,{D}] mod_video, float[1,6,{D}] mod_action)
        {{ six = Constant<value_ints=[1,6,{D}]>()  said = Expand(text, six)  mod_video = Add(said, t)
           mod_action = Expand(t, six) }}""",
    "frame_encoder": f"""(float[1,3,{HEIGHT},{WIDTH}] image) => (float[1,{K},{C}] latent)
        {{ axes = Constant<value_ints=[2,3]>()  mean = ReduceMean<keepdims=0>(image, axes)
           row = MatMul(mean, w_image)  shape = Constant<value_ints=[1,{K},{C}]>()
           latent = Reshape(row, shape) }}""",
    "prefill": f"""(float[1,{K},{C}] latent) => (float[1,1,{K},{HD}] key, float[1,1,{K},{HD}] value)
        {{ shape = Constant<value_ints=[1,1,{K},{C}]>()  tokens = Reshape(latent, shape)
           key = MatMul(tokens, w_key)  value = MatMul(tokens, w_value) }}""",
    "context": f"""(float[{S},1,1,{K},{HD}] key, float[{S},1,1,{K},{HD}] value, float[1,{S}] slot_pos,
          float[1,{S}] valid, float[1,1,1,{HD}] key_text, float[1,1,1,{HD}] value_text)
        => (float[1,1,{N_WAM},{HD}] key_context, float[1,1,{N_WAM},{HD}] value_context, float[1,{K + N_WAM}] mask)
        {{ two = Constant<value_float=2.0>()  near = Add(two, slot_pos)  weight = Mul(valid, near)
           slots = Constant<value_ints=[{S},1,1,1,1]>()  each = Reshape(weight, slots)
           keys = Mul(key, each)  values = Mul(value, each)  flat = Constant<value_ints=[1,1,{S * K},{HD}]>()
           key_rows = Reshape(keys, flat)  value_rows = Reshape(values, flat)
           key_context = Concat<axis=2>(key_rows, key_text)  value_context = Concat<axis=2>(value_rows, value_text)
           one = Constant<value_float=1.0>()  empty = Sub(one, valid)  column = Constant<value_ints=[{S},1]>()
           down = Reshape(empty, column)  wide = Constant<value_ints=[{S},{K}]>()  tokens = Expand(down, wide)
           line = Constant<value_ints=[1,{S * K}]>()  hidden = Reshape(tokens, line)
           mask = Concat<axis=1>(no_tokens, hidden, no_word) }}""",
    "video_step": f"""(float[1,{F},{K},{C}] video, float[1,{K},{C}] latent, float[1,{K},{D}] place,
          float[1,1,{N_WAM},{HD}] key_context, float[1,1,{N_WAM},{HD}] value_context, float[1,{K + N_WAM}] mask,
          float[1,6,{D}] mod_video, float[1] t_video)
        => (float[1,{F},{K},{C}] v_video, float[1,1,{K},{HD}] key_video, float[1,1,{K},{HD}] value_video)
        {{ rows = Add(key_context, value_context)  sight = ReduceMean<keepdims=0>(rows)
           words = ReduceMean<keepdims=0>(place)  blind = ReduceMean<keepdims=0>(mask)
           six = ReduceMean<keepdims=0>(mod_video)  known = Add(sight, words)  seen = Sub(known, blind)
           drive = Add(seen, six)  one = Constant<value_float=1.0>()  half = Constant<value_float=0.5>()
           frame = Constant<value_ints=[1,1,{K},{C}]>()  now = Reshape(latent, frame)  goal = Mul(now, half)
           gap = Sub(goal, video)  late = Mul(t_video, half)  pace = Sub(one, late)  moved = Mul(gap, pace)
           v_video = Add(moved, drive)
           first = Constant<value_ints=[1]>()  mean = ReduceMean(video, first)
           bare_key = MatMul(mean, w_key)  key_video = Add(bare_key, t_video)
           value_video = MatMul(mean, w_value) }}""",
    "action_step": f"""(float[1,{H},{J}] action, float[1,{H},{J}] prefix, float[1,{H}] prefix_mask,
          float[1,{J}] state, float[1,1,{K},{HD}] key_video, float[1,1,{K},{HD}] value_video,
          float[1,6,{D}] mod_action, float[1] t_action)
        => (float[1,{H},{J}] v_action)
        {{ rows = Add(key_video, value_video)  seen = ReduceMean<keepdims=0>(rows)
           six = ReduceMean<keepdims=0>(mod_action)  plan = Add(seen, six)
           body = ReduceSum<keepdims=0>(state)  goal = Add(plan, body) {FLOW}""",
    "frame_decoder": f"""(float[1,{K},{C}] latent) => (float[1,3,{HEIGHT},{WIDTH}] image)
        {{ flat = Constant<value_ints=[1,{K * C}]>()  row = Reshape(latent, flat)
           colour = MatMul(row, w_colour)  soft = Tanh(colour)
           pixel = Constant<value_ints=[1,3,1,1]>()  dot = Reshape(soft, pixel)
           size = Constant<value_ints=[1,3,{HEIGHT},{WIDTH}]>()  image = Expand(dot, size) }}""",
}
SENSES = {"text": TEXT, "frame_encoder": GRAPHS["frame_encoder"]}
"""Graphs of every VLA."""
CONTEXT = f"""(float[1,{K},{C}] latent, float[1,{K},{C}] before, float[1] has_before, float[1,1,{D}] text,
          float[1,{J}] state) => (float[1,1,{N},{HD}] key, float[1,1,{N},{HD}] value)
        {{ now = MatMul(latent, w_key)  old = MatMul(before, w_value)  past = Mul(old, has_before)
           words = MatMul(text, w_words)  felt = MatMul(state, w_body)
           one_row = Constant<value_ints=[1,1,{HD}]>()  body = Reshape(felt, one_row)
           rows = Concat<axis=1>(now, past, words, body)  shape = Constant<value_ints=[1,1,{N},{HD}]>()
           key = Reshape(rows, shape)  half = Constant<value_float=0.5>()  value = Mul(key, half) }}"""
FLOW_INPUTS = f"float[1,{H},{J}] action, float[1,{H},{J}] prefix, float[1,{H}] prefix_mask, float[1] t_action"
FLOW_VLA = {
    "context": CONTEXT,
    "action_step": f"""({FLOW_INPUTS}, float[1,1,{N},{HD}] key, float[1,1,{N},{HD}] value)
        => (float[1,{H},{J}] v_action)
        {{ rows = Sub(key, value)  goal = ReduceSum<keepdims=0>(rows) {FLOW}""",
}
TOKEN_VLA = {
    "context": CONTEXT,
    "token_step": f"""(int64[1] token, int64[1] position, float[1,1,{N},{HD}] key, float[1,1,{N},{HD}] value,
          float[1,1,{H * J},{HD}] past_key, float[1,1,{H * J},{HD}] past_value)
        => (float[1,{BINS}] logits, float[1,1,1,{HD}] new_key, float[1,1,1,{HD}] new_value)
        {{ spoken = Cast<to=1>(token)  place = Cast<to=1>(position)
           size = Constant<value_float={1 / BINS}>()  share = Mul(spoken, size)
           tenth = Constant<value_float=0.1>()  step = Mul(place, tenth)  said = Add(share, step)
           shape = Constant<value_ints=[1,1,1,{HD}]>()  new_key = Expand(said, shape)
           half = Constant<value_float=0.5>()  new_value = Mul(new_key, half)
           before = Less(places, position)  mask = Cast<to=1>(before)
           past = Sub(past_key, past_value)  kept = Mul(past, mask)  memory = ReduceMean<keepdims=0>(kept)
           rows = Sub(key, value)  plan = ReduceSum<keepdims=0>(rows)
           thought = Add(plan, memory)  phase = Add(thought, said)  wave = Sin(phase)
           wide = Constant<value_float=100.0>()  swing = Mul(wave, wide)
           middle = Constant<value_float=127.5>()  target = Add(swing, middle)
           gap = Sub(bins, target)  square = Mul(gap, gap)  sharp = Constant<value_float=-0.05>()
           peak = Mul(square, sharp)  logits = Add(peak, w_bias) }}""",
}
DUAL_VLA = {
    "features": f"""(float[1,{K},{C}] latent, float[1,{K},{C}] before, float[1] has_before, float[1,1,{D}] text)
        => (float[1,{2 * K + 1},{D}] features)
        {{ now = MatMul(latent, w_now)  old = MatMul(before, w_old)  past = Mul(old, has_before)
           features = Concat<axis=1>(now, past, text) }}""",
    "action_step": f"""({FLOW_INPUTS}, float[1,{J}] state, float[1,{2 * K + 1},{D}] features, float[1] age)
        => (float[1,{H},{J}] v_action)
        {{ seen = ReduceSum<keepdims=0>(features)  felt = MatMul(state, w_body)  body = ReduceSum<keepdims=0>(felt)
           drive = Add(seen, body)  goal = Add(drive, age) {FLOW}""",
}
FAMILIES = {
    "wam": GRAPHS,
    "flow_vla": SENSES | FLOW_VLA,
    "token_vla": SENSES | TOKEN_VLA,
    "dual_vla": SENSES | DUAL_VLA,
}


def weights(bias: float = 0.0) -> dict[str, NDArray[np.float32]]:
    """The stubs' weights by name. bias: added to every action velocity or logit; nan makes every chunk nan."""
    rng = np.random.default_rng(7)
    shapes = {
        "w_text": (W, D),
        "w_image": (3, K * C),
        "w_key": (C, HD),
        "w_value": (C, HD),
        "w_colour": (K * C, 3),
        "w_words": (D, HD),
        "w_body": (J, HD),
        "w_now": (C, D),
        "w_old": (C, D),
    }
    scaled = {name: rng.standard_normal(shape) * 0.05 for name, shape in shapes.items()}
    scaled["w_bias"] = np.array([bias])
    return {name: array.astype(np.float32) for name, array in scaled.items()}


def model(name: str, bias: float = 0.0, family: str = "wam") -> bytes:
    """One graph as an ONNX file."""
    header = f'<ir_version: 10, opset_import: ["": 20]> {name} '
    parsed = onnx.parser.parse_model(header + FAMILIES[family][name])
    used = {tensor for node in parsed.graph.node for tensor in node.input}
    constants: dict[str, NDArray[np.generic]] = {
        "bins": np.arange(BINS, dtype=np.float32)[None],
        "places": np.arange(H * J, dtype=np.int64).reshape(1, 1, H * J, 1),
        "no_tokens": np.zeros((1, K), np.float32),
        "no_word": np.zeros((1, 1), np.float32),
        **weights(bias),
    }
    parsed.graph.initializer.extend(
        numpy_helper.from_array(array, key) for key, array in constants.items() if key in used
    )
    onnx.checker.check_model(parsed)
    data: bytes = parsed.SerializeToString()
    return data


def statistics(family: str = "wam") -> bundle.Statistics:
    """The manifest's statistics of a stub."""

    def table(*shape: int, value: float) -> object:
        return np.full(shape, value).tolist()

    common = {
        "action_std": table(H, J, value=0.02),
        "state_mean": table(J, value=0.1),
        "state_std": table(J, value=0.7),
        "latent_mean": table(K, C, value=0.05),
        "latent_std": table(K, C, value=0.2),
    }
    own = {
        "wam": {"residual_std": table(F, K, C, value=0.3)},
        "token_vla": {"action_low": table(H, J, value=-0.3), "action_high": table(H, J, value=0.5)},
    }
    return msgspec.convert(common | own.get(family, {}), bundle.Statistics)


def section(family: str = "wam") -> bundle.Section:
    """The manifest's `dzedge` section of a stub."""
    samplers = {"wam": ("video_first(1,1)", "joint(4)", "flash(1)"), "token_vla": ("greedy", "sample(1.0)")}
    graphs = {
        name: bundle.Graph(variants=(bundle.Variant(file=f"{name}.fp32.onnx", precision="fp32", ep="any", isa="any"),))
        for name in FAMILIES[family]
    }
    rows = bundle.Window(slots=S if family == "wam" else 0, layers=1, heads=1, head_dim=HD)
    return bundle.Section(
        family=family,  # type: ignore[arg-type]
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
            frames=F if family == "wam" else 0,
            frame_dt_ns=200_000_000,
            history_ns=(200_000_000, 0),
            tokens=K,
            channels=C,
            token_names=("arm", "red", "green", "blue", "yellow", "magenta", "cyan"),
        ),
        window=None if family == "dual_vla" else rows,
        slow_ns=SLOW_NS if family == "dual_vla" else None,
        language=bundle.Language(words=W, vocabulary=VOCABULARY),
        statistics=statistics(family),
        samplers=samplers.get(family, ("euler(4)", "euler(1)")),
        graphs=graphs,
    )


def write(
    folder: Path, changed: bundle.Section | None = None, bias: float = 0.0, more: Mapping[str, bytes] | None = None
) -> Path:
    """Write and sign (with the test key) a stub bundle. changed: another section than `section()`, of any family;
    more: further files by name."""
    changed = changed or section()
    folder.mkdir(parents=True)
    for name in FAMILIES[changed.family]:
        if name in changed.graphs:
            (folder / f"{name}.fp32.onnx").write_bytes(model(name, bias, changed.family))
    for name, data in (more or {}).items():
        (folder / name).write_bytes(data)
    secret = SecretKey.decode(TEST_SECRET.read_text(encoding="ascii"), str(TEST_SECRET))
    bundle.pack(folder, changed, secret, created="20261122T000000Z", name="stub")
    return folder


def frame(number: int) -> Frame:
    """Frame `number` of a 15 Hz camera of 160 x 120 pixels, its colours its own."""
    rng = np.random.default_rng(number)
    image = rng.integers(0, 128, (120, 160, 3), dtype=np.uint8) + rng.integers(0, 128, 3, dtype=np.uint8)
    return Frame(image, number, 1_000_000_000 + number * 66_666_667, 0)


def observation(*numbers: int) -> Observation:
    """What `frame` shows, newest last, with the joints at STATE."""
    frames = tuple(frame(number) for number in numbers)
    t_obs_ns = frames[-1].capture_ns
    return Observation(frames, JointState(STATE, np.zeros(J), t_obs_ns), t_obs_ns, ASKED, 2)
