"""Structures and functions of librealsense's C API that are used here, as its headers (librealsense2/h/*.h of 2.59)
declare them."""

import ctypes
from typing import Any


class Intrinsics(ctypes.Structure):
    """rs2_intrinsics."""

    _fields_ = (
        ("width", ctypes.c_int),
        ("height", ctypes.c_int),
        ("ppx", ctypes.c_float),
        ("ppy", ctypes.c_float),
        ("fx", ctypes.c_float),
        ("fy", ctypes.c_float),
        ("model", ctypes.c_int),
        ("coefficients", ctypes.c_float * 5),
    )


class VideoStream(ctypes.Structure):
    """rs2_video_stream."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("index", ctypes.c_int),
        ("uid", ctypes.c_int),
        ("width", ctypes.c_int),
        ("height", ctypes.c_int),
        ("fps", ctypes.c_int),
        ("bpp", ctypes.c_int),
        ("format", ctypes.c_int),
        ("intrinsics", Intrinsics),
    )


CODES: dict[str, Any] = {
    "v": None,
    "p": ctypes.c_void_p,
    "i": ctypes.c_int,
    "l": ctypes.c_longlong,
    "L": ctypes.c_ulonglong,
    "f": ctypes.c_float,
    "s": ctypes.c_char_p,
    "I": ctypes.POINTER(ctypes.c_int),
    "F": ctypes.POINTER(ctypes.c_float),
    "N": ctypes.POINTER(Intrinsics),
    "A": ctypes.POINTER(ctypes.c_void_p),
    "V": VideoStream,
}

# Result and arguments, without the rs2_error** that comes last in each.
CALLS = {
    "rs2_create_context": "p:i",
    "rs2_query_devices": "p:p",
    "rs2_get_device_count": "i:p",
    "rs2_create_device": "p:pi",
    "rs2_supports_device_info": "i:pi",
    "rs2_get_device_info": "s:pi",
    "rs2_hardware_reset": "v:p",
    "rs2_query_sensors": "p:p",
    "rs2_get_sensors_count": "i:p",
    "rs2_create_sensor": "p:pi",
    "rs2_supports_sensor_info": "i:pi",
    "rs2_get_sensor_info": "s:pi",
    "rs2_get_stream_profiles": "p:p",
    "rs2_get_stream_profiles_count": "i:p",
    "rs2_get_stream_profile": "p:pi",
    "rs2_get_stream_profile_data": "v:pIIIII",
    "rs2_get_video_stream_resolution": "v:pII",
    "rs2_get_video_stream_intrinsics": "v:pN",
    "rs2_supports_option": "i:pi",
    "rs2_set_option": "v:pif",
    "rs2_get_option": "f:pi",
    "rs2_get_option_range": "v:piFFFF",
    "rs2_open_multiple": "v:pAi",
    "rs2_start_queue": "v:pp",
    "rs2_stop": "v:p",
    "rs2_close": "v:p",
    "rs2_create_frame_queue": "p:i",
    "rs2_create_software_device": "p:",
    "rs2_create_record_device_ex": "p:psi",
    "rs2_context_add_device": "p:ps",
    "rs2_context_remove_device": "v:ps",
    "rs2_playback_device_get_current_status": "i:p",
    "rs2_playback_get_duration": "L:p",
    "rs2_software_device_add_sensor": "p:ps",
    "rs2_software_device_register_info": "v:pis",
    "rs2_software_sensor_add_video_stream_ex": "p:pVi",
    "rs2_software_sensor_add_option": "v:piffffi",
    "rs2_software_sensor_add_read_only_option": "v:pif",
    "rs2_software_sensor_set_metadata": "v:pil",
}

DELETERS = (
    "context", "device_list", "device", "sensor_list", "sensor", "stream_profiles_list", "frame_queue",
)  # fmt: skip

# Called by the kernels, by address.
PUMPED = (
    "rs2_try_wait_for_frame",
    "rs2_release_frame",
    "rs2_free_error",
    "rs2_get_error_message",
    "rs2_get_frame_number",
    "rs2_get_frame_timestamp",
    "rs2_get_frame_timestamp_domain",
    "rs2_supports_frame_metadata",
    "rs2_get_frame_metadata",
    "rs2_get_frame_data",
    "rs2_get_frame_data_size",
    "rs2_get_frame_width",
    "rs2_get_frame_height",
    "rs2_get_frame_stride_in_bytes",
    "rs2_get_frame_bits_per_pixel",
    "rs2_get_frame_stream_profile",
    "rs2_get_stream_profile_data",
    "rs2_software_sensor_on_video_frame",
    "rs2_software_sensor_set_metadata",
)
