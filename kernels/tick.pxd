"""The control tick: states, requests, causes and refusals; see tick.pyx."""

cpdef enum State:
    BOOT = 0
    VERIFY = 1
    READY = 2       # no torque; the bus is read
    ARMED = 3       # holding the pose in which torque came on
    RUN = 4         # playing a chunk
    HOLD = 5        # came to a stop within the limits, holding
    FAULT = 6       # latched
    ESTOP = 7       # latched
    STOPPING = 8    # coming to rest, then the loop ends

cpdef enum Request:
    REQUEST_HOLD = 0
    REQUEST_RUN = 1

cpdef enum Cause:
    # why the state is what it is
    CAUSE_NONE = 0
    CAUSE_EXHAUSTED = 1     # the chunk was played to its end and no other came
    CAUSE_REQUEST = 2       # the operator asked for it
    CAUSE_TASK = 3          # the task changed: its chunks are void
    CAUSE_OVERRUN = 4       # the loop itself was late by more than three periods
    CAUSE_GATE = 5          # the gate refused; its code is kept
    CAUSE_ENCODE = 6        # the bus refused to encode; its code is kept
    CAUSE_BUS_SILENT = 7    # no whole answer from the bus for too long
    CAUSE_UNPLUGGED = 8     # the port is gone
    CAUSE_LIMITER = 9       # the limiter was given a target that is none
    CAUSE_SERVO = 10        # a servo reports an alert, or is too hot, or has too little or too much voltage

cpdef enum Refusal:
    # why a chunk was not taken; the old one plays on
    REFUSED_EPOCH = 0       # made for another task, or before a reset
    REFUSED_ORDER = 1       # a duplicate, or older than the running one
    REFUSED_FUTURE = 2      # observed later than now
    REFUSED_STALE = 3       # nothing of it is left to play
    REFUSED_STEP = 4        # another time step than the policy's
    REFUSED_NOT_FINITE = 5
    REFUSED_RANGE = 6       # far outside the joint limits
    REFUSALS = 7
