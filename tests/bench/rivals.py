"""What the runtime is measured against: the same chunk in torch, and by ONNX Runtime as a plain loop.

Each takes a camera image and joint positions to absolute actions and imagined latents, as dzedge does, with the same
resize kernel, the same sampler and the same statistics; each keeps the rows of the older frame or its latent.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from dzedge.export.model.blocks import velocity
from dzedge.export.model.graphs import Graph
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.wam import Wam
from dzedge.export.onnx import export_graph
from dzedge.kernels.image import ImagePlan
from dzedge.policies import WorldActionModel

Array = np.ndarray
Call = Callable[..., tuple[Any, ...]]
WORDS = [1, 13, 15, 14]
"""Ids of some instruction."""


class Task:
    """What all rivals share. ours: whose sampler and statistics they take."""

    def __init__(self, ours: WorldActionModel, sizes: Sizes, camera: tuple[int, int]) -> None:
        self.sizes, self.sampler, self.table = sizes, ours.sampler, ours.statistics
        self.image = np.zeros((1, 3, sizes.image_height, sizes.image_width), np.float32)
        self.plan = ImagePlan(*camera, None, sizes.image_height, sizes.image_width)
        self.rng = np.random.default_rng(0)
        self.words = np.zeros((1, sizes.words), np.int64)
        self.words[0, : len(WORDS)] = WORDS
        self.slots = {
            "slot_pos": -np.arange(sizes.window, dtype=np.float32)[None],
            "valid": np.ones((1, sizes.window), np.float32),
        }

    def noise(self) -> tuple[Array, Array]:
        sizes = self.sizes
        video = self.rng.standard_normal((1, sizes.frames, sizes.tokens, sizes.channels), dtype=np.float32)
        return video, self.rng.standard_normal((1, sizes.horizon, sizes.joints), dtype=np.float32)

    def conditions(self, positions: Array) -> dict[str, Array]:
        sizes = self.sizes
        state = (positions - self.table.state_mean) / self.table.state_std
        return {
            "prefix": np.zeros((1, sizes.horizon, sizes.joints), np.float32),
            "prefix_mask": np.zeros((1, sizes.horizon), np.float32), "state": state[None].astype(np.float32),
        }  # fmt: skip

    def result(self, latent: Array, video: Array, action: Array, positions: Array) -> tuple[Array, Array]:
        imagined = (latent + video[0] * self.table.residual_std).astype(np.float32)
        return positions + action[0] * self.table.action_std, imagined


class Torch:
    """Torch, keeping what dzedge keeps: text, modulation of every time, rows. graphs: the modules behind the exported
    graphs; compiled: by inductor, shapes static."""

    def __init__(self, task: Task, graphs: list[Graph], compiled: bool = False) -> None:
        self.task = task
        self.graphs = {graph.name: graph for graph in graphs}
        wrap: Callable[[nn.Module], Any] = (lambda m: torch.compile(m, dynamic=False)) if compiled else (lambda m: m)
        self.modules = {name: wrap(graph.module) for name, graph in self.graphs.items() if name != "frame_decoder"}
        sizes = task.sizes
        rows = (sizes.window, sizes.layers, sizes.heads, sizes.tokens, sizes.head_width)
        self.window = {"key": torch.zeros(rows), "value": torch.zeros(rows)}
        self.slots = {name: torch.from_numpy(array) for name, array in task.slots.items()}
        with torch.inference_mode():
            self.said = self.call("text", words=torch.from_numpy(task.words))
            sampler = task.sampler
            times = {i / n for n in (sampler.video_steps, sampler.action_steps) for i in range(n)} | {1.0}
            self.modulation = {
                t: self.call("modulation", t=torch.tensor([t]), text=self.said["text"]) for t in sorted(times)
            }

    def call(self, name: str, **feeds: Tensor) -> dict[str, Tensor]:
        """One graph, by names."""
        graph = self.graphs[name]
        found = self.modules[name](*(feeds[key] for key in graph.inputs))
        return dict(zip(graph.outputs, found if isinstance(found, tuple) else (found,), strict=True))

    def chunk(self, image: Array, positions: Array) -> tuple[Array, Array]:
        task, sampler, said = self.task, self.task.sampler, self.said
        task.plan.run(image, task.image[0])
        with torch.inference_mode():
            latent = self.call("frame_encoder", image=torch.from_numpy(task.image))["latent"]
            rows = self.call("prefill", latent=latent)
            for name, kept in self.window.items():
                kept[0] = rows[name]
            context = self.call("context", **self.window, **self.slots, **said)
            video, action = (torch.from_numpy(noise) for noise in task.noise())
            for i in range(sampler.video_steps):
                time = i / sampler.video_steps
                step = self.video(video, latent, context, time)
                video = video + step["v_video"] / sampler.video_steps
            rows = self.video(video, latent, context, 1.0)
            known = {name: torch.from_numpy(array) for name, array in task.conditions(positions).items()}
            known |= {"key_video": rows["key_video"], "value_video": rows["value_video"]}
            for i in range(sampler.action_steps):
                time = i / sampler.action_steps
                mod, t = self.modulation[time]["mod_action"], torch.tensor([time])
                found = self.call("action_step", action=action, mod_action=mod, t_action=t, **known)
                action = action + found["v_action"] / sampler.action_steps
            return task.result(latent.numpy()[0], video.numpy(), action.numpy(), positions)

    def video(self, video: Tensor, latent: Tensor, context: dict[str, Tensor], time: float) -> dict[str, Tensor]:
        mod = self.modulation[time]["mod_video"]
        return self.call(
            "video_step", video=video, latent=latent, place=self.said["place"], mod_video=mod,
            t_video=torch.tensor([time]), **context,
        )  # fmt: skip


class PlainVideo(nn.Module):
    """A video pass that makes text, rows of the window and modulation anew."""

    def __init__(self, wam: Wam) -> None:
        super().__init__()
        self.wam = wam

    def forward(
        self, words: Tensor, latents: Tensor, slot_pos: Tensor, valid: Tensor, video: Tensor, t_video: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """latents: Shape (1, S, K, C), newest first -> v_video, key_video, value_video."""
        wam, body = self.wam, torch.zeros(1, dtype=torch.int64)
        window = wam.window(latents)
        clean, rows, _ = wam.video(video, latents[:, 0], window, slot_pos, valid, wam.text(words), t_video, body)
        return velocity(clean, video, t_video), rows[0], rows[1]


class PlainAction(nn.Module):
    """An action pass against a finished video's rows, its modulation made anew."""

    def __init__(self, wam: Wam) -> None:
        super().__init__()
        self.stream = wam.action

    def forward(
        self, action: Tensor, prefix: Tensor, prefix_mask: Tensor, state: Tensor, key: Tensor, value: Tensor,
        t_action: Tensor,
    ) -> Tensor:  # fmt: skip
        return velocity(self.stream(action, prefix, prefix_mask, state, (key, value), t_action), action, t_action)


class Whole(nn.Module):
    """Both in one: a step of the coupled original, which knows no video without actions."""

    def __init__(self, wam: Wam) -> None:
        super().__init__()
        self.video, self.action = PlainVideo(wam), PlainAction(wam)

    def forward(
        self, words: Tensor, latents: Tensor, slot_pos: Tensor, valid: Tensor, video: Tensor, t_video: Tensor,
        action: Tensor, prefix: Tensor, prefix_mask: Tensor, state: Tensor, t_action: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        v_video, key, value = self.video(words, latents, slot_pos, valid, video, t_video)
        return v_video, self.action(action, prefix, prefix_mask, state, key, value, t_action)


def export_plain(task: Task, wam: Wam, folder: Path) -> dict[str, Path]:
    """The rival's graphs, made once. Returns paths by name: video, action, whole."""
    sizes = task.sizes
    rows = (1, sizes.layers, sizes.heads, sizes.tokens, sizes.head_width)
    time = torch.tensor([0.25])
    noise = [torch.from_numpy(array) for array in task.noise()]
    slots = {name: torch.from_numpy(array) for name, array in task.slots.items()}
    known = {name: torch.from_numpy(array) for name, array in task.conditions(np.zeros(sizes.joints)).items()}
    latents = torch.randn(1, sizes.window, sizes.tokens, sizes.channels)
    video = {"words": torch.from_numpy(task.words), "latents": latents, **slots, "video": noise[0], "t_video": time}
    action = {"action": noise[1], **known, "key": torch.randn(rows), "value": torch.randn(rows), "t_action": time}
    free = {name: tensor for name, tensor in action.items() if name not in ("key", "value")}
    made = (
        Graph("video", PlainVideo(wam), video, ("v_video", "key", "value")),
        Graph("action", PlainAction(wam), action, ("v_action",)),
        Graph("whole", Whole(wam), {**video, **free}, ("v_video", "v_action")),
    )
    paths = {}
    for graph in made:
        paths[graph.name] = folder / f"plain-{graph.name}.onnx"
        if not paths[graph.name].exists():
            with torch.no_grad():
                export_graph(graph, paths[graph.name])
    return paths


class Plain:
    """A loop of `session.run` in float32 on graphs that make text, rows and modulation anew in every pass.

    encoder: the bundle's own file; whole: one graph for video and actions, run in every step of either.
    """

    def __init__(self, task: Task, files: dict[str, Path], encoder: bytes, threads: int, whole: bool) -> None:
        self.task, self.whole = task, whole
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # As dzedge has it: spinning pools of several sessions would take the cores from each other.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")

        def load(model: bytes) -> Any:
            return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

        names = ("whole",) if whole else ("video", "action")
        self.run = {name: load(files[name].read_bytes()).run for name in names}
        self.encode = load(encoder).run
        sizes = task.sizes
        self.latents = np.zeros((1, sizes.window, sizes.tokens, sizes.channels), np.float32)

    def chunk(self, image: Array, positions: Array) -> tuple[Array, Array]:
        task = self.task
        task.plan.run(image, task.image[0])
        self.latents[0, 0] = self.encode(None, {"image": task.image})[0][0]
        video, action = task.noise()
        seen = {"words": task.words, "latents": self.latents, **task.slots}
        known = task.conditions(positions)
        denoise = self._together if self.whole else self._apart
        video, action = denoise(video, action, seen, known)
        return task.result(self.latents[0, 0], video, action, positions)

    def _apart(self, video: Array, action: Array, seen: Any, known: Any) -> tuple[Array, Array]:
        nv, na = self.task.sampler.video_steps, self.task.sampler.action_steps
        for i in range(nv):
            (v,) = self.run["video"](["v_video"], {**seen, "video": video, "t_video": _time(i / nv)})
            video = video + v / np.float32(nv)
        key, value = self.run["video"](["key", "value"], {**seen, "video": video, "t_video": _time(1.0)})
        for i in range(na):
            feed = {**known, "key": key, "value": value, "action": action, "t_action": _time(i / na)}
            action = action + self.run["action"](None, feed)[0] / np.float32(na)
        return video, action

    def _together(self, video: Array, action: Array, seen: Any, known: Any) -> tuple[Array, Array]:
        nv, na = self.task.sampler.video_steps, self.task.sampler.action_steps
        run = self.run["whole"]

        def step(t_video: float, t_action: float) -> list[Array]:
            times = {"t_video": _time(t_video), "t_action": _time(t_action)}
            found: list[Array] = run(None, {**seen, **known, "video": video, "action": action, **times})
            return found

        for i in range(nv):
            video = video + step(i / nv, 0.0)[0] / np.float32(nv)
        for i in range(na):
            action = action + step(1.0, i / na)[1] / np.float32(na)
        return video, action


def _time(value: float) -> Array:
    return np.array([value], np.float32)
