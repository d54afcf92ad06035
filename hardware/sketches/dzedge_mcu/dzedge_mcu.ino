// Reference sketch: an arm of hobby servos with analog feedback as a dzedge arm (docs/mcu-protocol.md).
// For any board with Arduino's Servo library and analog inputs: Uno, Nano, Mega, ESP32, Pico.
//
// Fill in the table for your arm, with the horn off: what stands here fits no arm but by accident.
#include <Servo.h>

#include "mcu_core.h"

namespace {

struct Joint {
  uint8_t servo_pin, sensor_pin;
  int zero_us;           // pulse at position 0
  float us_per_unit;     // pulse width a radian, gripper: from closed to open; negative: turns the other way
  int zero_counts;       // what analogRead gives at position 0
  float counts_per_unit;
};

constexpr uint8_t kJoints = 3;
const Joint kWiring[kJoints] = {
    {3, A0, 1500, 637.0f, 512, 163.0f},
    {5, A1, 1500, 637.0f, 512, 163.0f},
    {6, A2, 1000, 1000.0f, 256, 512.0f},  // a gripper
};
// [rad] and [rad/s], the gripper [1] and [1/s]. The robot file's limits must lie inside.
const dzedge::Limits kLimits[kJoints] = {{-1.2f, 1.2f, 2.0f}, {-1.2f, 1.2f, 2.0f}, {0.0f, 1.0f, 2.0f}};
constexpr uint32_t kPeriodUs = 5000;
constexpr float kSmoothing = 0.2f;  // of the velocity: potentiometers are noisy

class Board : public dzedge::Hardware {
 public:
  void sample(float elapsed) {
    for (uint8_t j = 0; j < kJoints; j++) {
      const int counts = analogRead(kWiring[j].sensor_pin);
      const float position = static_cast<float>(counts - kWiring[j].zero_counts) / kWiring[j].counts_per_unit;
      if (elapsed > 0) {
        const float velocity = (position - now_[j].position) / elapsed;
        now_[j].velocity += kSmoothing * (velocity - now_[j].velocity);
      }
      now_[j].position = position;
      // at an end of its range the input hangs in the air or the wire is cut
      now_[j].faults = counts < 4 || counts > 1019 ? dzedge::kSensorFailed : 0;
    }
  }

  dzedge::Measured measure(uint8_t joint) override { return now_[joint]; }

  void drive(uint8_t joint, float position) override {
    const Joint& wiring = kWiring[joint];
    servos_[joint].writeMicroseconds(wiring.zero_us + static_cast<int>(position * wiring.us_per_unit));
  }

  void torque(bool on) override {
    for (uint8_t j = 0; j < kJoints; j++) {
      if (on) servos_[j].attach(kWiring[j].servo_pin);
      else servos_[j].detach();  // no pulses: an analog servo goes limp
    }
  }

  uint8_t faults() override { return 0; }  // a board that measures its supply returns kUnderVoltage here

  void send(const uint8_t* data, size_t size) override { Serial.write(data, size); }

 private:
  Servo servos_[kJoints];
  dzedge::Measured now_[kJoints] = {};
};

Board board;
dzedge::Core core(board, kLimits, kJoints);
uint32_t sampled_us = 0;

}  // namespace

void setup() {
  Serial.begin(115200);
  board.sample(0);
}

void loop() {
  const uint32_t now_us = micros();
  while (Serial.available() > 0) core.receive(static_cast<uint8_t>(Serial.read()), micros());
  if (now_us - sampled_us < kPeriodUs) return;
  board.sample(static_cast<float>(now_us - sampled_us) * 1e-6f);
  sampled_us = now_us;
  core.poll(micros());
}
