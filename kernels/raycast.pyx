"""Pinhole camera against planes, spheres, capsules, ellipsoids, cylinders and boxes, without OpenGL or the GIL.

One ray a pixel. What never moves is cast once and kept; a picture adds what moves, each shape only inside the
rectangle of pixels that its bounding box projects to, and the nearest hit stays. Lambert's law gives the colour.

Only + - * / and sqrt, in a fixed order: the same picture on every machine. The conventions for kinds and sizes are
MuJoCo's (mjtGeom, geom_size), and `mj_multiRay` is the oracle that tests hold this against.
"""

cimport cython
from libc.math cimport fabs, sqrt
from libc.string cimport memcpy

import numpy as np

ctypedef unsigned char uint8
ctypedef unsigned short uint16


cdef enum:
    # mjtGeom
    PLANE = 0
    SPHERE = 2
    CAPSULE = 3
    ELLIPSOID = 4
    CYLINDER = 5
    BOX = 6

cdef double TINY = 1e-15
cdef double NEAR = 1e-3         # corners nearer to the camera's plane than this do not project [m]

KINDS = {"plane": PLANE, "sphere": SPHERE, "capsule": CAPSULE, "ellipsoid": ELLIPSOID, "cylinder": CYLINDER, "box": BOX}
"""Numbers of the shapes that can be drawn, as in mjtGeom."""


cdef struct Shape:
    int kind
    double[3] size
    double[9] turn              # shape to world, row by row
    double[3] place
    double[3] offset            # from its centre to the eye, in the world
    double[3] eye               # the eye in its own frame
    double reach                # |offset|^2 less the bounding sphere's radius squared; unused by planes


cdef inline double quadratic(double a, double b, double c, double* second) noexcept nogil:
    """The two roots of a x^2 + 2 b x + c, the smaller first; both -1 where there is none."""
    cdef double root = b * b - a * c
    if root < TINY:
        second[0] = -1.0
        return -1.0
    root = sqrt(root)
    second[0] = (-b + root) / a
    return (-b - root) / a


cdef inline double ahead(double a, double b, double c) noexcept nogil:
    """The first of the two roots that is not behind the eye, else -1."""
    cdef double second
    cdef double first = quadratic(a, b, c, &second)
    return first if first >= 0.0 else second if second >= 0.0 else -1.0


cdef double cap(const Shape* s, const double* v, double best, int end) noexcept nogil:
    """`best`, or the hit on the half sphere at one end of a capsule where that is nearer. end: 1 or -1."""
    cdef double z = s.eye[2] - end * s.size[1]
    cdef double second
    cdef double first = quadratic(
        v[0] * v[0] + v[1] * v[1] + v[2] * v[2],
        v[0] * s.eye[0] + v[1] * s.eye[1] + v[2] * z,
        s.eye[0] * s.eye[0] + s.eye[1] * s.eye[1] + z * z - s.size[0] * s.size[0],
        &second,
    )
    if first >= 0.0 and end * (s.eye[2] + first * v[2]) >= s.size[1] and (best < 0.0 or first < best):
        best = first
    if second >= 0.0 and end * (s.eye[2] + second * v[2]) >= s.size[1] and (best < 0.0 or second < best):
        best = second
    return best


cdef inline double side(const Shape* s, const double* v) noexcept nogil:
    """The hit on the round side of a capsule or cylinder, -1 where it is missed."""
    cdef double t = ahead(
        v[0] * v[0] + v[1] * v[1],
        v[0] * s.eye[0] + v[1] * s.eye[1],
        s.eye[0] * s.eye[0] + s.eye[1] * s.eye[1] - s.size[0] * s.size[0],
    )
    return t if t >= 0.0 and fabs(s.eye[2] + t * v[2]) <= s.size[1] else -1.0


cdef double lid(const Shape* s, const double* v, double best, int end, uint8* part) noexcept nogil:
    """`best`, or the hit on one flat end of a cylinder where that is nearer. end: 1 or -1."""
    cdef double t, x, y
    if fabs(v[2]) <= TINY:
        return best
    t = (end * s.size[1] - s.eye[2]) / v[2]
    x = s.eye[0] + t * v[0]
    y = s.eye[1] + t * v[1]
    if t < 0.0 or x * x + y * y > s.size[0] * s.size[0] or (best >= 0.0 and t >= best):
        return best
    part[0] = 1 if end > 0 else 2
    return t


cdef double face(const Shape* s, const double* v, double best, int axis, int end, uint8* part) noexcept nogil:
    """`best`, or the hit on one face of a box where that is nearer. axis: 0 to 2; end: 1 or -1."""
    cdef int i = 1 if axis == 0 else 0
    cdef int j = 1 if axis == 2 else 2
    cdef double t
    if fabs(v[axis]) <= TINY:
        return best
    t = (end * s.size[axis] - s.eye[axis]) / v[axis]
    if t < 0.0 or (best >= 0.0 and t >= best):
        return best
    if fabs(s.eye[i] + t * v[i]) > s.size[i] or fabs(s.eye[j] + t * v[j]) > s.size[j]:
        return best
    part[0] = 2 * axis + (end > 0)
    return t


cdef double ellipsoid(const Shape* s, const double* v) noexcept nogil:
    cdef double a = 0.0, b = 0.0, c = -1.0, weight
    cdef int i
    for i in range(3):
        weight = 1.0 / (s.size[i] * s.size[i])
        a += weight * v[i] * v[i]
        b += weight * v[i] * s.eye[i]
        c += weight * s.eye[i] * s.eye[i]
    return ahead(a, b, c)


cdef double plane(const Shape* s, const double* v) noexcept nogil:
    """Only from the front; a size of 0 means endless."""
    cdef double t
    if v[2] > -TINY:
        return -1.0
    t = -s.eye[2] / v[2]
    if t < 0.0 or (s.size[0] > 0.0 and fabs(s.eye[0] + t * v[0]) > s.size[0]):
        return -1.0
    return -1.0 if s.size[1] > 0.0 and fabs(s.eye[1] + t * v[1]) > s.size[1] else t


cdef double meet(const Shape* s, const double* ray, uint8* part) noexcept nogil:
    """Distance along a unit ray to the shape, -1 where it is missed. part: which side of it, for `normal_of`."""
    cdef double[3] v
    cdef double b, t = -1.0
    cdef int axis
    part[0] = 0
    if s.kind != PLANE:
        b = ray[0] * s.offset[0] + ray[1] * s.offset[1] + ray[2] * s.offset[2]
        if b * b - s.reach < 0.0 or (b > 0.0 and s.reach > 0.0):
            return -1.0                                     # passes its bounding sphere, or leaves it behind
    v[0] = s.turn[0] * ray[0] + s.turn[3] * ray[1] + s.turn[6] * ray[2]
    v[1] = s.turn[1] * ray[0] + s.turn[4] * ray[1] + s.turn[7] * ray[2]
    v[2] = s.turn[2] * ray[0] + s.turn[5] * ray[1] + s.turn[8] * ray[2]
    if s.kind == BOX:
        for axis in range(3):
            t = face(s, v, t, axis, -1, part)
            t = face(s, v, t, axis, 1, part)
        return t
    if s.kind == CAPSULE:
        return cap(s, v, cap(s, v, side(s, v), 1), -1)
    if s.kind == CYLINDER:
        t = lid(s, v, lid(s, v, -1.0, -1, part), 1, part)
        b = side(s, v)
        if b >= 0.0 and (t < 0.0 or b < t):
            part[0] = 0
            t = b
        return t
    if s.kind == PLANE:
        return plane(s, v)
    return ellipsoid(s, v)                                   # a sphere has three equal sizes here


cdef void normal_of(const Shape* s, const double* ray, double t, int part, double* out) noexcept nogil:
    """The outward unit normal where the ray meets the shape, in the world."""
    cdef double[3] n
    cdef double length
    cdef int i
    for i in range(3):
        n[i] = s.eye[i] + t * (s.turn[i] * ray[0] + s.turn[3 + i] * ray[1] + s.turn[6 + i] * ray[2])
    if s.kind == BOX:
        for i in range(3):
            n[i] = 0.0
        n[part // 2] = 1.0 if part % 2 else -1.0
    elif s.kind == PLANE or part:
        n[0] = n[1] = 0.0
        n[2] = -1.0 if part == 2 else 1.0
    elif s.kind == CAPSULE:
        n[2] -= max(-s.size[1], min(s.size[1], n[2]))
    elif s.kind == CYLINDER:
        n[2] = 0.0
    else:
        for i in range(3):
            n[i] /= s.size[i] * s.size[i]
    length = sqrt(n[0] * n[0] + n[1] * n[1] + n[2] * n[2])
    for i in range(3):
        n[i] /= length
    for i in range(3):
        out[i] = s.turn[3 * i] * n[0] + s.turn[3 * i + 1] * n[1] + s.turn[3 * i + 2] * n[2]


@cython.final
cdef class RayCaster:
    """A pinhole camera and the shapes before it.

    height, width: of the picture [pixels]; focal: [pixels], the principal point is the picture's centre; kinds:
    Shape (n,), see KINDS; sizes: Shape (n, 3), [m], as MuJoCo's geom_size; far: what is farther is not seen [m].
    Only shapes that `background` and `cast` are told of by number are drawn.

    One thread at a time. Raises ValueError on another shape of array, a number out of range, or a kind of geometry
    that it cannot draw.
    """

    cdef readonly int height, width, shapes
    cdef readonly double focal, far
    cdef readonly object ids, distance, rays
    cdef uint8[:, ::1] _table
    cdef Shape* _shape
    cdef double[3] _eye
    cdef double[9] _turn
    cdef double[3] _light
    cdef double[4] _ground
    cdef double _ambient, _diffuse
    cdef const double[:, ::1] _pixels
    cdef const double[::1] _cosine
    cdef double[:, ::1] _rays
    cdef int[::1] _ids, _kept_ids
    cdef double[::1] _distance, _kept_distance
    cdef uint8[::1] _part, _kept_part
    cdef float[:, ::1] _painted
    cdef const float[:, ::1] _palette

    def __init__(self, int height, int width, double focal, kinds, sizes, double far=4.0):
        cdef Py_ssize_t i
        if not (0 < height <= 4096 and 0 < width <= 4096 and focal > 0.0 and far > 0.0):
            raise ValueError(f"picture of {width}x{height}, focal length {focal}, far {far}: sides must be 1 to 4096, "
                             "the others above 0")
        kinds = np.ascontiguousarray(kinds, np.int32)
        odd = sorted(set(kinds.tolist()) - set(KINDS.values()))
        if kinds.ndim != 1 or odd:
            raise ValueError(f"geometry of kind {odd or kinds.shape}: it can be drawn as {', '.join(KINDS)} only")
        sizes = np.ascontiguousarray(sizes, np.float64)
        if sizes.shape != (len(kinds), 3):
            raise ValueError(f"sizes of shape {sizes.shape}, wanted {(len(kinds), 3)}")
        self.height, self.width, self.focal, self.far, self.shapes = height, width, focal, far, len(kinds)
        self._table = np.zeros((max(1, self.shapes), sizeof(Shape)), np.uint8)
        self._shape = <Shape*>&self._table[0, 0]
        for i in range(self.shapes):
            self._shape[i].kind = kinds[i]
            for j in range(3):
                self._shape[i].size[j] = sizes[i, 0] if kinds[i] == SPHERE else sizes[i, j]
        self._allocate()
        self.aim(np.zeros(3), np.eye(3))

    def _allocate(self):
        """Directions in the camera's frame, and the buffers of a picture."""
        n = self.height * self.width
        v, u = np.mgrid[0:self.height, 0:self.width].astype(np.float64)
        across, down = (u + 0.5 - self.width / 2) / self.focal, (v + 0.5 - self.height / 2) / self.focal
        pixels = np.stack([across, down, np.ones_like(u)], axis=-1)
        length = np.sqrt((pixels**2).sum(axis=-1)).reshape(-1)
        self._pixels = pixels.reshape(-1, 3) / length[:, None]
        self._cosine = 1.0 / length
        self.rays = np.empty((n, 3))
        self.ids, self.distance, self._part = np.full(n, -1, np.int32), np.full(n, -1.0), np.zeros(n, np.uint8)
        self._kept_ids, self._kept_part = np.full(n, -1, np.int32), np.zeros(n, np.uint8)
        self._kept_distance = np.full(n, -1.0)
        self._painted = np.zeros((n, 3), np.float32)
        self._ids, self._distance, self._rays = self.ids, self.distance, self.rays

    def aim(self, eye, rotation):
        """Put the camera somewhere. eye: Shape (3,), [m]; rotation: Shape (3, 3), camera to world, its columns right,
        down and forward. What `background` kept is of the old place."""
        cdef const double[::1] place = np.ascontiguousarray(eye, np.float64)
        cdef const double[:, ::1] turn = np.ascontiguousarray(rotation, np.float64)
        cdef Py_ssize_t i, j, k
        if place.shape[0] != 3 or (turn.shape[0], turn.shape[1]) != (3, 3):
            raise ValueError(f"eye of shape {np.shape(eye)}, rotation {np.shape(rotation)}: wanted (3,), (3, 3)")
        for i in range(3):
            self._eye[i] = place[i]
            for j in range(3):
                self._turn[3 * i + j] = turn[i, j]
        with nogil:
            for k in range(self._rays.shape[0]):
                for i in range(3):
                    self._rays[k, i] = (
                        self._turn[3 * i] * self._pixels[k, 0] + self._turn[3 * i + 1] * self._pixels[k, 1]
                        + self._turn[3 * i + 2] * self._pixels[k, 2]
                    )

    def background(self, places, turns, const int[::1] chosen):
        """Cast what never moves, and keep it for the pictures to come; arguments as `cast`."""
        self._kept_ids[:] = -1
        self._kept_distance[:] = -1.0
        self._kept_part[:] = 0
        self.cast(places, turns, chosen)
        self._kept_ids[:] = self._ids
        self._kept_distance[:] = self._distance
        self._kept_part[:] = self._part

    def cast(self, places, turns, const int[::1] chosen):
        """Find what each ray meets first: the background, or one of the shapes `chosen`.

        places: Shape (n, 3), [m]; turns: Shape (n, 9), shape to world row by row (MuJoCo's geom_xpos and geom_xmat);
        chosen: numbers of shapes, int32. Fills `ids`, Shape (height * width,), int32, -1 for nothing, and
        `distance`, float64, [m] along the ray, -1 for nothing.
        """
        cdef const double[:, ::1] place = np.ascontiguousarray(places, np.float64)
        cdef const double[:, ::1] turn = np.ascontiguousarray(turns, np.float64)
        cdef Py_ssize_t i, n = self._ids.shape[0]
        if (place.shape[0], place.shape[1], turn.shape[0], turn.shape[1]) != (self.shapes, 3, self.shapes, 9):
            raise ValueError(f"places {np.shape(places)}, turns {np.shape(turns)}: wanted "
                             f"({self.shapes}, 3) and ({self.shapes}, 9)")
        for i in range(chosen.shape[0]):
            if not 0 <= chosen[i] < self.shapes:
                raise ValueError(f"shape {chosen[i]}: must be 0 to {self.shapes - 1}")
        with nogil:
            memcpy(&self._ids[0], &self._kept_ids[0], n * sizeof(int))
            memcpy(&self._distance[0], &self._kept_distance[0], n * sizeof(double))
            memcpy(&self._part[0], &self._kept_part[0], n)
            for i in range(chosen.shape[0]):
                self._put(chosen[i], &place[chosen[i], 0], &turn[chosen[i], 0])
                self._draw(chosen[i])

    def relight(self, palette, light, double ambient, double diffuse, ground):
        """Set the light and paint the background.

        palette: Shape (n + 1, 3), float32, colours of the shapes at full light, 0..255, and of what lies beyond the
        ground; light: Shape (3,), unit vector towards it; ground: (x0, x1, y0, y1) [m], outside of which shape 0
        has the last colour.
        """
        cdef Py_ssize_t k
        palette = np.ascontiguousarray(palette, np.float32)
        if palette.shape != (self.shapes + 1, 3):
            raise ValueError(f"palette of shape {palette.shape}, wanted {(self.shapes + 1, 3)}")
        self._palette = palette
        for k in range(3):
            self._light[k] = light[k]
        for k in range(4):
            self._ground[k] = ground[k]
        self._ambient, self._diffuse = ambient, diffuse
        memcpy(&self._ids[0], &self._kept_ids[0], self._ids.shape[0] * sizeof(int))
        memcpy(&self._distance[0], &self._kept_distance[0], self._ids.shape[0] * sizeof(double))
        memcpy(&self._part[0], &self._kept_part[0], self._ids.shape[0])
        with nogil:
            for k in range(self._ids.shape[0]):
                self._shade(k, &self._painted[k, 0])

    def paint(self, const float[:, ::1] noise, uint8[:, :, ::1] rgb, uint16[:, ::1] depth):
        """The picture of the last `cast`. noise: Shape (height * width, 3), float32, [8-bit counts]; rgb: Shape
        (height, width, 3), written; depth: Shape (height, width), [mm] along the optical axis, 0 for nothing, written.
        """
        wanted = (self.height * self.width, 3, self.height, self.width, 3, self.height, self.width)
        got = (noise.shape[0], noise.shape[1], rgb.shape[0], rgb.shape[1], rgb.shape[2], depth.shape[0], depth.shape[1])
        if got != wanted:
            raise ValueError(f"noise, rgb, depth of shape {got[:2]}, {got[2:5]}, {got[5:]}: wanted {wanted[:2]}, "
                             f"{wanted[2:5]}, {wanted[5:]}")
        with nogil:
            self._paint(&noise[0, 0], &rgb[0, 0, 0], &depth[0, 0])

    cdef void _paint(self, const float* noise, uint8* rgb, uint16* depth) noexcept nogil:
        cdef Py_ssize_t k
        cdef int i
        cdef float[3] shaded
        cdef float value
        cdef const float* painted
        for k in range(self._ids.shape[0]):
            painted = &self._painted[k, 0]
            if self._distance[k] == self._kept_distance[k]:
                shaded[0], shaded[1], shaded[2] = painted[0], painted[1], painted[2]
            else:
                self._shade(k, shaded)
            for i in range(3):
                value = (painted[i] + noise[3 * k + i]) + (shaded[i] - painted[i])
                rgb[3 * k + i] = <uint8>(0.0 if value < 0.0 else 255.0 if value > 255.0 else value)
            if self._distance[k] > 0.0:
                depth[k] = <uint16>(1000.0 * self._distance[k] * self._cosine[k] + 0.5)
            else:
                depth[k] = 0

    cdef void _shade(self, Py_ssize_t k, float* out) noexcept nogil:
        """The colour of pixel `k` in the light. Nothing at all has the last colour, lit from above nowhere."""
        cdef int number = self._ids[k], i
        cdef double x, y, falling = 0.0
        cdef double[3] normal
        cdef float level
        if number >= 0:
            normal_of(&self._shape[number], &self._rays[k, 0], self._distance[k], self._part[k], normal)
            falling = normal[0] * self._light[0] + normal[1] * self._light[1] + normal[2] * self._light[2]
        if number == 0:
            x = self._eye[0] + self._rays[k, 0] * self._distance[k]
            y = self._eye[1] + self._rays[k, 1] * self._distance[k]
            if x < self._ground[0] or x > self._ground[1] or y < self._ground[2] or y > self._ground[3]:
                number = -1
        if number < 0:
            number = self.shapes
        level = <float>(self._ambient + self._diffuse * (falling if falling > 0.0 else 0.0))
        for i in range(3):
            out[i] = self._palette[number, i] * level

    cdef void _put(self, int number, const double* place, const double* turn) noexcept nogil:
        """Where a shape is now, and the eye seen from it."""
        cdef Shape* s = &self._shape[number]
        cdef double radius
        cdef int i
        memcpy(s.turn, turn, 9 * sizeof(double))
        memcpy(s.place, place, 3 * sizeof(double))
        for i in range(3):
            s.offset[i] = self._eye[i] - place[i]
        for i in range(3):
            s.eye[i] = turn[i] * s.offset[0] + turn[3 + i] * s.offset[1] + turn[6 + i] * s.offset[2]
        if s.kind == CAPSULE:
            radius = s.size[0] + s.size[1]
            radius = radius * radius
        elif s.kind == CYLINDER:
            radius = s.size[0] * s.size[0] + s.size[1] * s.size[1]
        elif s.kind == BOX:
            radius = s.size[0] * s.size[0] + s.size[1] * s.size[1] + s.size[2] * s.size[2]
        else:
            radius = max(s.size[0], max(s.size[1], s.size[2]))
            radius = radius * radius
        s.reach = s.offset[0] * s.offset[0] + s.offset[1] * s.offset[1] + s.offset[2] * s.offset[2] - radius * 1.000001

    cdef void _draw(self, int number) noexcept nogil:
        """Cast one shape into the pixels that it may cover."""
        cdef const Shape* s = &self._shape[number]
        cdef int[4] box
        cdef Py_ssize_t x, y, k
        cdef double t
        cdef uint8 part
        self._frame(s, box)
        for y in range(box[1], box[3]):
            for x in range(box[0], box[2]):
                k = y * self.width + x
                t = meet(s, &self._rays[k, 0], &part)
                if t >= 0.0 and t <= self.far and (self._distance[k] < 0.0 or t < self._distance[k]):
                    self._distance[k] = t
                    self._ids[k] = number
                    self._part[k] = part

    cdef void _frame(self, const Shape* s, int* box) noexcept nogil:
        """Left, top, right and bottom of the pixels that its bounding box projects to, one more on each side; all of
        them for a plane and for what reaches behind the camera."""
        cdef double[3] half
        cdef double[3] seen
        cdef double left = 1e9, top = 1e9, right = -1e9, bottom = -1e9, along, x, y
        cdef int corner, i, j
        box[0] = box[1] = 0
        box[2], box[3] = self.width, self.height
        if s.kind == PLANE:
            return
        half[0] = s.size[0]
        half[1] = s.size[0] if s.kind == CAPSULE or s.kind == CYLINDER else s.size[1]
        half[2] = s.size[0] + s.size[1] if s.kind == CAPSULE else s.size[1] if s.kind == CYLINDER else s.size[2]
        for corner in range(8):
            seen[0] = seen[1] = seen[2] = 0.0
            for i in range(3):
                along = -s.offset[i]
                for j in range(3):
                    along += s.turn[3 * i + j] * (half[j] if corner >> j & 1 else -half[j])
                for j in range(3):
                    seen[j] += self._turn[3 * i + j] * along
            if seen[2] < NEAR:
                return
            x = self.focal * seen[0] / seen[2] + 0.5 * self.width
            y = self.focal * seen[1] / seen[2] + 0.5 * self.height
            left, right = min(left, x), max(right, x)
            top, bottom = min(top, y), max(bottom, y)
        box[0] = <int>max(0.0, min(left - 1.0, <double>self.width))
        box[1] = <int>max(0.0, min(top - 1.0, <double>self.height))
        box[2] = <int>max(0.0, min(right + 2.0, <double>self.width))
        box[3] = <int>max(0.0, min(bottom + 2.0, <double>self.height))
