"""Rendered scenes whose truth is known: coloured shapes over grey ground, with exact maps, boxes and class.

Conditioned synthesis is measured on these scenes exactly, because every condition can be read back from a picture by
a rule of a few lines. The scenes are built for that:

- A scene holds 2 to 6 objects, each of another category, and a category's hue is its own (45 degrees apart), while
  the ground is nearly grey. So `segment_by_color` recovers the segmentation, and an object is all pixels of its hue.
- Objects are flat cards of one true area, parallel to the picture. Apparent size is therefore proportional to
  `depth`, which like a disparity is 1 for the nearest possible object and 0 for the ground behind everything.
- The scene's class is the category of the nearest object. It is hidden by nothing and covers more pixels than any
  other category, so `label_by_color` recovers the class.
- Shapes lie wholly inside the picture. Boxes are of the whole shape, hidden parts too: they are the layout's truth,
  the same at every image size. Each object stays visible in part.

A scene is drawn in the unit square (x to the right, y down) before any pixel exists; the image size only samples it.
All of the above holds from 32 pixels up; at 16 a rule by colour misses a few scenes of a thousand.
"""

import dataclasses
from typing import ClassVar, NamedTuple, SupportsIndex, TypedDict

import numpy as np
from jaxtyping import Float32, Int32, UInt8

MIN_OBJECTS, MAX_OBJECTS = 2, 6
SPLITS = {"train": 0, "validation": 1}
MIN_IMAGE_SIZE = 16  # below this the farthest objects are narrower than two pixels

_RADIUS = 0.21  # of the disc at depth 1; not much larger, or a second object might find no place
_DEPTH_NEAREST = (0.8, 1.0)
_DEPTH_FARTHEST = 0.35
_DEPTH_RATIO = 0.88  # second nearest to nearest at most: 0.77 of the area, so that pixels cannot reverse it
_MARGIN = 0.01  # between a box and the picture's border
_GROUND_CHROMA = 0.09  # at most, where an object in the deepest shadow keeps more than 0.25 ...
_CHROMA_THRESHOLD = 0.17  # ... so that this tells one from the other
_CORNERS = [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)]


class Scene(TypedDict):
    """One example. Objects come nearest first; rows past the last object are padding, so that examples batch."""

    image: UInt8[np.ndarray, "s s 3"]  # anti-aliased
    label: np.int32  # category of the nearest object
    segmentation: UInt8[np.ndarray, "s s"]  # 0 is ground, else category + 1 of what the pixel's centre shows
    depth: Float32[np.ndarray, "s s"]  # 0 is ground, 1 the nearest possible
    boxes: Float32[np.ndarray, "n 4"]  # x0 y0 w h in [0, 1] of the whole shape; padding 0
    categories: Int32[np.ndarray, " n"]  # padding -1


class _Shape(NamedTuple):
    """A polygon grown by a disc of radius `rounding`; `wall` > 0 leaves only that thick a wall of it.

    A point grows to a disc and a segment to a pill, so one distance function serves all, and a rotated shape's extent
    is its vertices' extent plus `rounding`, exactly. Lengths are such that every shape has the unit disc's area.
    """

    name: str
    vertices: np.ndarray  # v 2
    rounding: float
    wall: float = 0.0


def _polar(radii: list[float]) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    return np.array(radii)[:, None] * np.stack([np.sin(angles), -np.cos(angles)], axis=-1)


_CROSS = [(1, 3), (1, 1), (3, 1), (3, -1), (1, -1), (1, -3), (-1, -3), (-1, -1), (-3, -1), (-3, 1), (-1, 1), (-1, 3)]
_CHEVRON = [(-3, 0), (0, -3), (3, 0), (3, 2.4), (0, -0.6), (-3, 2.4)]

_SHAPES = (  # in the order of their hues: red, amber, lime, green, cyan, blue, violet, magenta
    _Shape("disc", np.zeros((1, 2)), 1.0),
    _Shape("star", 1.291 * _polar([1.0, 0.5] * 5), 0.08),
    _Shape("chevron", 0.409 * np.array(_CHEVRON), 0.08),
    _Shape("cross", 0.351 * np.array(_CROSS), 0.08),
    _Shape("ring", np.zeros((1, 2)), 1.155, wall=0.5775),
    _Shape("square", 1.114 * _polar([1.0] * 4), 0.1),
    _Shape("triangle", 1.364 * _polar([1.0] * 3), 0.1),
    _Shape("pill", np.array([[-0.85, 0.0], [0.85, 0.0]]), 0.596),
)
_HUES = 360.0 * np.arange(len(_SHAPES)) / len(_SHAPES)
_HUE_AXES = np.stack([np.cos(np.deg2rad(_HUES)), np.sin(np.deg2rad(_HUES))]).astype(np.float32)


class _Texture(NamedTuple):
    """A pattern of the plane; lengths in the unit square."""

    kind: str
    angle: float
    period: float
    phase: np.ndarray  # 2
    waves: np.ndarray  # 7 7, the cosine series of clouds


class _Object(NamedTuple):
    """One card: where it stands, how it is turned and painted."""

    category: int
    depth: float
    angle: float
    origin: np.ndarray  # x y of the shape's own origin, not of the box's centre
    box: np.ndarray  # x0 y0 w h
    color: np.ndarray  # 3
    texture: _Texture


class _Layout(NamedTuple):
    """A whole scene before any pixel: objects nearest first, the ground's two tones, a unit vector to the light."""

    objects: list[_Object]
    ground: _Texture
    tones: np.ndarray  # 2 3
    light: tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenes:
    """A random-access source; nothing is stored. ValueError for an unknown split or a number out of range."""

    split: str  # "train" or "validation"; the two share no scene
    image_size: int  # height and width in pixels; the scenes themselves do not depend on it
    length: int = 50_000
    seed: int = 0

    name: ClassVar[str] = "scenes"
    category_names: ClassVar[tuple[str, ...]] = tuple(shape.name for shape in _SHAPES)
    class_names: ClassVar[tuple[str, ...]] = category_names

    def __post_init__(self):
        if self.split not in SPLITS:
            raise ValueError(f"`split` must be one of {', '.join(SPLITS)}; got {self.split!r}. Choose one of these.")
        for field, least in (("image_size", MIN_IMAGE_SIZE), ("length", 1), ("seed", 0)):
            value = getattr(self, field)
            if value < least:
                raise ValueError(f"`{field}` must be at least {least}; got {value}. Set it to {least} or more.")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: SupportsIndex) -> Scene:
        """Draws and renders scene `index`; IndexError outside 0 .. length - 1."""
        i = index.__index__()
        if not 0 <= i < self.length:
            raise IndexError(f"`index` must be in 0 .. {self.length - 1}; got {i}. Raise `length` for more scenes.")
        return _render(_draw_layout(np.random.default_rng((self.seed, SPLITS[self.split], i))), self.image_size)


def segment_by_color(images: UInt8[np.ndarray, "*b 3"]) -> UInt8[np.ndarray, "*b"]:
    """Reads the segmentation from colours alone: 0 where nearly grey, else 1 + the category of the nearest hue."""
    red, green, blue = np.moveaxis(images.astype(np.float32) / 255, -1, 0)
    chroma = np.stack([red - (green + blue) / 2, np.sqrt(3) / 2 * (green - blue)], axis=-1)
    nearest = np.argmax(chroma @ _HUE_AXES, axis=-1) + 1
    return np.where(np.hypot(chroma[..., 0], chroma[..., 1]) < _CHROMA_THRESHOLD, 0, nearest).astype(np.uint8)


def label_by_color(images: UInt8[np.ndarray, "*b H W 3"]) -> Int32[np.ndarray, "*b"]:
    """Reads the class from colours alone: the category with the most pixels; -1 where there is only ground."""
    shown = segment_by_color(images)
    counts = np.stack([(shown == c + 1).sum(axis=(-2, -1)) for c in range(len(_SHAPES))], axis=-1)
    return np.where(counts.any(axis=-1), counts.argmax(axis=-1), -1).astype(np.int32)


# Drawing a layout: every random number of a scene is drawn here.


def _draw_layout(rng: np.random.Generator) -> _Layout:
    count = int(rng.integers(MIN_OBJECTS, MAX_OBJECTS + 1))
    objects: list[_Object] = []
    for category, depth in zip(rng.permutation(len(_SHAPES))[:count], _draw_depths(rng, count), strict=True):
        objects += _draw_object(rng, int(category), float(depth), objects)
    tint, chroma = rng.uniform(0, 360), rng.uniform(0.02, _GROUND_CHROMA)
    middle, contrast = rng.uniform(0.42, 0.78), rng.uniform(0.05, 0.13)
    tones = np.stack([_rgb(tint, chroma, middle + side * contrast + chroma / 2) for side in (-1, 1)])
    ground = _draw_texture(rng, ("stripes", "checks", "dots", "clouds", "gradient"), (0.12, 0.3))
    angle = rng.uniform(-np.pi, 0)  # the light comes from above
    return _Layout(objects, ground, tones, (float(np.cos(angle)), float(np.sin(angle))))


def _draw_depths(rng: np.random.Generator, count: int) -> np.ndarray:
    """Falling depths: the nearest stands out, the others take one of equal slots each, never closer than 0.4 slot."""
    nearest = rng.uniform(*_DEPTH_NEAREST)
    slots = (np.arange(count - 1) + rng.uniform(0, 0.6, count - 1)) / (count - 1)
    return np.append(nearest, _DEPTH_RATIO * nearest - (_DEPTH_RATIO * nearest - _DEPTH_FARTHEST) * slots)


def _draw_object(rng: np.random.Generator, category: int, depth: float, nearer: list[_Object]) -> list[_Object]:
    """One object at the first of some random places that nearer ones leave open; none if there is no such place."""
    shape, radius, angle = _SHAPES[category], _RADIUS * depth, rng.uniform(0, 2 * np.pi)
    turned = shape.vertices @ [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
    low, high = radius * (turned.min(0) - shape.rounding), radius * (turned.max(0) + shape.rounding)
    # The corners come last: whatever the nearest object, in one of them a second one fits, so there are always two.
    places = np.concatenate([rng.uniform(0, 1, (24, 2)), rng.permutation(_CORNERS)])
    origins = _MARGIN - low + places * (1 - 2 * _MARGIN - (high - low))
    free = np.ones(len(places), bool)
    for other in nearer:  # as if both were discs: the nearer one may reach to within 0.4 radius of this one's middle
        free &= np.hypot(*(origins - other.origin).T) >= _RADIUS * other.depth + 0.4 * radius
    color = _rgb(_HUES[category] + rng.uniform(-7, 7), rng.uniform(0.68, 0.84), rng.uniform(0.9, 1.0))
    texture = _draw_texture(rng, ("stripes", "checks", "dots", "gradient"), (0.09, 0.16))
    origin = origins[free.argmax()]
    thing = _Object(category, depth, angle, origin, np.append(origin + low, high - low), color, texture)
    return [thing] if free.any() else []


def _draw_texture(rng: np.random.Generator, kinds: tuple[str, ...], periods: tuple[float, float]) -> _Texture:
    kind = kinds[rng.integers(len(kinds))]
    return _Texture(kind, rng.uniform(0, 2 * np.pi), rng.uniform(*periods), rng.random(2), rng.normal(0, 0.3, (7, 7)))


def _rgb(hue: float, chroma: float, largest: float) -> np.ndarray:
    """A colour by its hue in degrees, its largest channel, and how far the smallest lies below (the chroma)."""
    distance = np.abs((hue / 60 - np.array([0.0, 2.0, 4.0]) + 3) % 6 - 3)  # from red, green, blue, in sixths of a turn
    return largest - chroma * np.clip(distance - 1, 0, 1)


# Rendering a layout: the painter's algorithm, farthest object first.


def _render(layout: _Layout, size: int) -> Scene:
    axis = ((np.arange(size) + 0.5) / size).astype(np.float32)
    dark, bright = layout.tones.astype(np.float32)
    ramp = 1 + 0.12 * (layout.light[0] * (axis - 0.5) + layout.light[1] * (axis[:, None] - 0.5))
    blend = 0.5 + 0.5 * _pattern(layout.ground, axis, axis, size)[..., None]
    image = (dark + (bright - dark) * blend) * ramp[..., None]
    segmentation, depth = np.zeros((size, size), np.uint8), np.zeros((size, size), np.float32)
    for thing in reversed(layout.objects):
        _paint(thing, layout.light, axis, image, segmentation, depth)
    n = len(layout.objects)
    boxes, categories = np.zeros((MAX_OBJECTS, 4), np.float32), np.full(MAX_OBJECTS, -1, np.int32)
    boxes[:n], categories[:n] = [thing.box for thing in layout.objects], [thing.category for thing in layout.objects]
    return Scene(
        image=(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8),
        label=categories[0],
        segmentation=segmentation,
        depth=depth,
        boxes=boxes,
        categories=categories,
    )


def _paint(thing: _Object, light: tuple[float, float], axis, image, segmentation, depth) -> None:
    """Paints one object and its shadow over what is there, in place, within the window that they touch."""
    size, radius = len(axis), _RADIUS * thing.depth
    reach = 0.45 * radius + 1 / size  # of the shadow, and of the smooth edge
    left, top = np.floor(np.maximum(0, thing.box[:2] - reach) * size).astype(int)
    right, bottom = np.ceil((thing.box[:2] + thing.box[2:] + reach) * size).astype(int)
    window = np.s_[top:bottom, left:right]
    x, y = axis[left:right] - np.float32(thing.origin[0]), axis[top:bottom] - np.float32(thing.origin[1])
    distance = _signed_distance(_SHAPES[thing.category], *_turn(x / radius, y / radius, -thing.angle))
    facing = np.clip((light[0] * x + light[1] * y[:, None]) / radius, -1, 1)  # 1 on the side of the light

    # Light and shadow scale a colour and so keep its hue: the colour rule sees through them.
    shadow = 1 - (0.26 - 0.14 * facing) * np.square(np.clip(1 - distance / 0.45, 0, 1))
    rim = np.square(np.clip(1 + distance / 0.2, 0, 1))
    shade = 0.88 + 0.09 * facing + 0.05 * _pattern(thing.texture, x, y, size) - 0.10 * rim
    coverage = np.clip(0.5 - distance * (radius * size), 0, 1)[..., None]  # the edge is one pixel wide
    behind = image[window] * shadow[..., None]
    image[window] = behind + coverage * (shade[..., None] * thing.color.astype(np.float32) - behind)

    inside = distance < 0  # the pixel-centre rule: maps are never blended
    segmentation[window][inside] = thing.category + 1
    depth[window][inside] = thing.depth


def _turn(x: np.ndarray, y: np.ndarray, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Both coordinates, h w, of every point of the grid of `x` (w,) and `y` (h,), turned about the origin."""
    cos, sin, y = float(np.cos(angle)), float(np.sin(angle)), y[:, None]
    return cos * x - sin * y, sin * x + cos * y


def _signed_distance(shape: _Shape, px: np.ndarray, py: np.ndarray) -> np.ndarray:
    """Distance of points to the outline, negative inside, in the shape's own lengths."""
    squared, odd = np.full(px.shape, np.inf, np.float32), np.zeros(px.shape, bool)
    vertices = shape.vertices.tolist()
    for (ax, ay), (bx, by) in zip(vertices, vertices[1:] + vertices[:1], strict=True):
        ex, ey, wx, wy = bx - ax, by - ay, px - ax, py - ay
        t = np.clip((wx * ex + wy * ey) / max(ex * ex + ey * ey, 1e-12), 0, 1)
        squared = np.minimum(squared, np.square(wx - t * ex) + np.square(wy - t * ey))
        if ay != by:  # a ray to the right crosses the outline an odd number of times from inside
            odd ^= ((py < ay) != (py < by)) & (wx < wy * (ex / ey))
    distance = np.where(odd, np.float32(-1), np.float32(1)) * np.sqrt(squared) - shape.rounding
    return np.abs(distance + shape.wall / 2) - shape.wall / 2 if shape.wall else distance


def _pattern(texture: _Texture, x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    """The texture in [-1, 1] on the grid of `x` and `y`; its edges are one pixel wide, as the shapes' are."""
    if texture.kind == "clouds":
        across, down = (np.cos(np.pi * t[:, None] * np.arange(7, dtype=np.float32)) for t in (x, y))
        return np.tanh(down @ texture.waves.astype(np.float32) @ across.T)
    u, v = _turn(x, y, texture.angle)
    if texture.kind == "gradient":
        return np.sin(np.pi * u)
    (u0, v0), pixels = texture.phase.tolist(), texture.period * size  # a period
    u, v = u / texture.period + u0, v / texture.period + v0
    u, v = np.abs(u - np.floor(u) - 0.5), np.abs(v - np.floor(v) - 0.5)  # from the middle of a period
    if texture.kind == "dots":
        return np.clip(2 * pixels * (0.28 - np.hypot(u, v)), -1, 1)
    stripes = np.clip(2 * pixels * (u - 0.25), -1, 1)
    return stripes if texture.kind == "stripes" else stripes * np.clip(2 * pixels * (v - 0.25), -1, 1)
