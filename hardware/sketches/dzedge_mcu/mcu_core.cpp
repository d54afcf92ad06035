#include "mcu_core.h"

#include <math.h>
#include <string.h>

namespace dzedge {

namespace {

// Little endian, byte by byte: no alignment, no assumption about the board.
size_t put(uint8_t* out, uint64_t value, size_t bytes) {
  for (size_t i = 0; i < bytes; i++) out[i] = static_cast<uint8_t>(value >> (8 * i));
  return bytes;
}

size_t put_float(uint8_t* out, float value) {
  uint32_t raw;
  memcpy(&raw, &value, 4);
  return put(out, raw, 4);
}

uint32_t get(const uint8_t* data, size_t bytes) {
  uint32_t value = 0;
  for (size_t i = 0; i < bytes; i++) value |= static_cast<uint32_t>(data[i]) << (8 * i);
  return value;
}

float get_float(const uint8_t* data) {
  const uint32_t raw = get(data, 4);
  float value;
  memcpy(&value, &raw, 4);
  return value;
}

}  // namespace

uint32_t crc32(const uint8_t* data, size_t size) {
  uint32_t crc = 0xFFFFFFFFu;
  for (size_t i = 0; i < size; i++) {
    crc ^= data[i];
    for (uint8_t bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (crc & 1 ? 0xEDB88320u : 0u);
  }
  return ~crc;
}

size_t cobs_encode(const uint8_t* data, size_t size, uint8_t* out) {
  size_t code = 0;  // where the length of the running block belongs
  for (size_t i = 0; i < size; i++) {
    out[i + 1] = data[i];
    if (data[i] == 0) {
      out[code] = static_cast<uint8_t>(i + 1 - code);
      code = i + 1;
    }
  }
  out[code] = static_cast<uint8_t>(size + 1 - code);
  out[size + 1] = 0;
  return size + 2;
}

size_t cobs_decode(uint8_t* data, size_t size) {
  size_t at = 0;
  while (at < size) {
    const uint8_t code = data[at];
    if (code == 0 || code == 255 || at + code > size) return 0;
    data[at] = 0;  // a block's length stands where a zero was
    at += code;
  }
  if (size < 2) return 0;
  memmove(data, data + 1, size - 1);
  return size - 1;
}

Core::Core(Hardware& hardware, const Limits* limits, uint8_t joints)
    : hardware_(hardware), limits_(limits), joints_(joints < kMaxJoints ? joints : kMaxJoints) {}

// ---- bytes

void Core::receive(uint8_t byte, uint32_t now_us) {
  advance(now_us);
  if (byte != 0) {
    if (filled_ < sizeof input_) input_[filled_++] = byte;
    else overrun_ = true;
    return;
  }
  const size_t size = overrun_ ? 0 : cobs_decode(input_, filled_);
  const bool empty = filled_ == 0;  // zeros between frames are allowed
  filled_ = 0;
  overrun_ = false;
  if (empty) return;
  if (size < kOverhead || crc32(input_, size - 4) != get(input_ + size - 4, 4)) {
    dropped_++;  // no answer: whose it was cannot be known
    return;
  }
  frame(size - 4);
}

void Core::frame(size_t size) {
  const uint8_t type = input_[0], *payload = input_ + 2;
  uint8_t body[kLongest], joint = kNoJoint;
  body[1] = input_[1];
  look();  // what is answered was measured now, and no command is judged by an old measurement
  const uint8_t reason = permit(type, payload, size - 2, &joint);
  if (reason != 0) {
    body[0] = kRefused;
    body[2] = type;
    body[3] = reason;
    body[4] = joint;
    return answer(body, 5);
  }
  obey(type, payload);
  body[0] = type | kReply;
  answer(body, 2 + (type == kHello ? greeting(body + 2) : state(body + 2)));
}

void Core::answer(const uint8_t* body, size_t size) {
  uint8_t whole[kLongest], out[kLongest + 2];
  memcpy(whole, body, size);
  size += put(whole + size, crc32(body, size), 4);
  hardware_.send(out, cobs_encode(whole, size, out));
}

// ---- what is asked

uint8_t Core::permit(uint8_t type, const uint8_t* payload, size_t size, uint8_t* joint) const {
  if (type < kHello || type > kClear) return kUnknown;
  size_t expected = 0;
  if (type == kHello) expected = 1;
  if (type == kEnable) expected = 4;
  if (type == kCycle) expected = 4u * joints_;
  if (size != expected) return kLength;
  if (type == kHello && payload[0] != kVersion) return kOtherVersion;
  if (type == kEnable) return permit_enable(payload, joint);
  if (type == kCycle) return permit_goals(payload, joint);
  if (type == kHold && mode_ == kOff) return kMode;
  if (type == kClear && mode_ == kActive) return kMode;
  return 0;
}

uint8_t Core::permit_enable(const uint8_t* payload, uint8_t* joint) const {
  const uint32_t hold = get(payload, 2), off = get(payload + 2, 2);
  if (hold < kHoldLowest || hold > kHoldHighest || off <= hold || off > kOffHighest) return kValue;
  uint8_t faults = latched_;
  for (uint8_t j = 0; j < joints_; j++) faults |= joint_latched_[j];
  if (faults != 0) return kLatched;
  for (uint8_t j = 0; j < joints_ && mode_ == kOff; j++) {
    const float position = measured_[j].position;
    if (position >= limits_[j].lower && position <= limits_[j].upper) continue;
    *joint = j;
    return kValue;
  }
  return 0;
}

uint8_t Core::permit_goals(const uint8_t* payload, uint8_t* joint) const {
  if (mode_ != kActive) return mode_ == kFault ? kLatched : kMode;
  for (uint8_t j = 0; j < joints_; j++) {
    const float goal = get_float(payload + 4 * j);
    if (goal >= limits_[j].lower && goal <= limits_[j].upper) continue;  // a NaN is neither
    *joint = j;
    return kValue;
  }
  return 0;
}

void Core::obey(uint8_t type, const uint8_t* payload) {
  switch (type) {
    case kEnable:
      hold_us_ = 1000ull * get(payload, 2);
      off_us_ = 1000ull * get(payload + 2, 2);
      enable();
      break;
    case kCycle:
      for (uint8_t j = 0; j < joints_; j++) goal_[j] = get_float(payload + 4 * j);
      fed_us_ = now_us_;
      break;
    case kDisable:
      switch_off(kAsked);
      break;
    case kHold:
      if (mode_ == kActive) hold(kHolding, kAsked);
      break;
    case kClear:
      latched_ = 0;
      memset(joint_latched_, 0, sizeof joint_latched_);
      if (mode_ == kFault) mode_ = kHolding;
      look();  // what is still there latches again
      break;
    default:
      break;  // hello, read: nothing changes, and the watchdog is not fed
  }
}

void Core::enable() {
  if (mode_ == kOff) {  // where it stands; an arm that is held already keeps its command, or it would sag at each enable
    for (uint8_t j = 0; j < joints_; j++) {
      command_[j] = goal_[j] = measured_[j].position;
      hardware_.drive(j, command_[j]);
    }
    hardware_.torque(true);
  }
  mode_ = kActive;
  cause_ = kAsked;
  fed_us_ = moved_us_ = now_us_;
}

void Core::switch_off(Cause cause) {
  hardware_.torque(false);
  mode_ = kOff;
  cause_ = cause;
}

void Core::hold(Mode mode, Cause cause) {
  memcpy(goal_, command_, sizeof goal_);
  mode_ = mode;
  cause_ = cause;
}

// ---- time

void Core::advance(uint32_t now_us) {
  now_us_ += now_us - last_us_;  // unsigned: right across the wrap
  last_us_ = now_us;
  watch();
}

void Core::watch() {
  const uint64_t starved = now_us_ - fed_us_;
  if (mode_ == kActive && starved > hold_us_) hold(kHolding, kWatchdog);
  if ((mode_ == kHolding || mode_ == kFault) && starved > off_us_) switch_off(kWatchdog);
}

void Core::poll(uint32_t now_us) {
  advance(now_us);
  look();
  const float elapsed = static_cast<float>(now_us_ - moved_us_) * 1e-6f;
  moved_us_ = now_us_;
  if (mode_ != kOff) move(elapsed);
}

void Core::look() {
  uint8_t faults = hardware_.faults();
  latched_ |= faults;
  for (uint8_t j = 0; j < joints_; j++) {
    measured_[j] = hardware_.measure(j);
    if (!isfinite(measured_[j].position) || !isfinite(measured_[j].velocity)) measured_[j].faults |= kSensorFailed;
    joint_latched_[j] |= measured_[j].faults;
    faults |= measured_[j].faults;
  }
  if (faults != 0 && (mode_ == kActive || mode_ == kHolding)) hold(kFault, kBroken);
}

void Core::move(float elapsed) {
  for (uint8_t j = 0; j < joints_; j++) {
    const float step = limits_[j].velocity * elapsed, left = goal_[j] - command_[j];
    command_[j] = fabsf(left) <= step ? goal_[j] : command_[j] + (left > 0 ? step : -step);
    hardware_.drive(j, command_[j]);
  }
}

// ---- replies

size_t Core::greeting(uint8_t* out) const {
  size_t at = 0;
  out[at++] = kVersion;
  out[at++] = joints_;
  for (uint8_t j = 0; j < joints_; j++) {
    at += put_float(out + at, limits_[j].lower);
    at += put_float(out + at, limits_[j].upper);
    at += put_float(out + at, limits_[j].velocity);
  }
  return at;
}

size_t Core::state(uint8_t* out) const {
  size_t at = 0;
  out[at++] = mode_;
  out[at++] = cause_;
  out[at++] = latched_;
  out[at++] = joints_;
  at += put(out + at, now_us_, 8);
  at += put(out + at, dropped_, 2);
  for (uint8_t j = 0; j < joints_; j++) {
    at += put_float(out + at, measured_[j].position);
    at += put_float(out + at, measured_[j].velocity);
    at += put_float(out + at, command_[j]);
    out[at++] = joint_latched_[j];
  }
  return at;
}

}  // namespace dzedge
