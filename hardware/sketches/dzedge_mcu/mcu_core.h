// The device's half of dzedge's microcontroller protocol (docs/mcu-protocol.md), without any board header:
// it is compiled into the sketch beside it, and on a computer into the test of the driver.
//
// Give it every received byte (`receive`) and call `poll` at least 100 times a second. It measures and moves joints
// only through `Hardware`. It never allocates, and never moves a joint that was not enabled with a watchdog.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace dzedge {

constexpr uint8_t kVersion = 1;
constexpr uint8_t kMaxJoints = 16;
constexpr size_t kLongest = 253;  // type, seq, payload and CRC; below 254, so COBS adds exactly one byte
constexpr size_t kOverhead = 6;   // type, seq, CRC-32

enum Type : uint8_t { kHello = 1, kEnable, kDisable, kCycle, kRead, kHold, kClear, kReply = 0x80, kRefused = 0xFF };
enum Mode : uint8_t { kOff, kActive, kHolding, kFault };
enum Cause : uint8_t { kBoot, kAsked, kWatchdog, kBroken };
enum Reason : uint8_t { kUnknown = 1, kLength, kValue, kMode, kLatched, kOtherVersion };
constexpr uint8_t kNoJoint = 255;

// Faults of the board or of a joint, a bit each; 0 is well.
enum FaultBit : uint8_t {
  kUnderVoltage = 1, kOverVoltage = 2, kOverheated = 4, kOverloaded = 8, kSensorFailed = 16, kInternal = 32
};

constexpr uint16_t kHoldLowest = 20, kHoldHighest = 1000, kOffHighest = 60000;  // [ms]

// What a joint may do: [rad] and [rad/s]; a gripper [1], 0 closed to 1 open, and [1/s].
struct Limits {
  float lower, upper, velocity;
};

struct Measured {
  float position, velocity;  // [rad], [rad/s]
  uint8_t faults;            // FaultBits
};

// What the core needs of a board.
class Hardware {
 public:
  virtual Measured measure(uint8_t joint) = 0;
  virtual void drive(uint8_t joint, float position) = 0;  // only called while torque is on
  virtual void torque(bool on) = 0;                       // before `on`, `drive` is called with the present pose
  virtual uint8_t faults() = 0;                           // of the board as a whole: FaultBits
  virtual void send(const uint8_t* data, size_t size) = 0;
};

uint32_t crc32(const uint8_t* data, size_t size);
// COBS of `size` <= kLongest bytes; writes size + 1 bytes and the closing 0, returns size + 2.
size_t cobs_encode(const uint8_t* data, size_t size, uint8_t* out);
// The reverse, in place, without the closing 0; returns the size, 0 where it is no COBS.
size_t cobs_decode(uint8_t* data, size_t size);

class Core {
 public:
  Core(Hardware& hardware, const Limits* limits, uint8_t joints);
  void receive(uint8_t byte, uint32_t now_us);
  void poll(uint32_t now_us);

  Mode mode() const { return mode_; }

 private:
  void advance(uint32_t now_us);
  void frame(size_t size);
  void answer(const uint8_t* body, size_t size);
  uint8_t permit(uint8_t type, const uint8_t* payload, size_t size, uint8_t* joint) const;
  uint8_t permit_enable(const uint8_t* payload, uint8_t* joint) const;
  uint8_t permit_goals(const uint8_t* payload, uint8_t* joint) const;
  void obey(uint8_t type, const uint8_t* payload);
  void enable();
  void switch_off(Cause cause);
  void hold(Mode mode, Cause cause);
  void watch();
  void look();
  void move(float elapsed);
  size_t greeting(uint8_t* out) const;
  size_t state(uint8_t* out) const;

  Hardware& hardware_;
  const Limits* limits_;
  uint8_t joints_;
  Mode mode_ = kOff;
  Cause cause_ = kBoot;
  uint8_t latched_ = 0;                   // faults of the board since the last clear
  uint8_t joint_latched_[kMaxJoints] = {};
  Measured measured_[kMaxJoints] = {};
  float goal_[kMaxJoints] = {};
  float command_[kMaxJoints] = {};        // what is driven: the goal, approached at the joint's velocity
  uint64_t hold_us_ = 0, off_us_ = 0;     // the watchdog, set by the enable
  uint64_t now_us_ = 0, fed_us_ = 0, moved_us_ = 0;
  uint32_t last_us_ = 0;
  uint16_t dropped_ = 0;                  // damaged frames
  bool overrun_ = false;
  size_t filled_ = 0;
  uint8_t input_[kLongest + 1] = {};
};

}  // namespace dzedge
