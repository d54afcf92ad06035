// The sketch's core on a computer: `mcu_host FD` serves the protocol on an inherited descriptor, with three
// joints (six with -DMCU_JOINTS=6) that follow their commands at once, until its standard input ends. Its clock only goes on by a microsecond at
// each look, and when told to. Lines on standard input are verbs, each answered by `ok`:
//   advance US | fault BITS | joint J BITS | place J POSITION
//   mute N | repeat N | late N: the next N replies are swallowed, sent twice, or kept back until the one after
// Standard output tells what the joints see, a line each: `torque 0|1`.
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <string>

#include "mcu_core.h"

namespace {

#ifndef MCU_JOINTS
#define MCU_JOINTS 3
#endif
constexpr uint8_t kJoints = MCU_JOINTS;
#if MCU_JOINTS == 3
const dzedge::Limits kLimits[kJoints] = {{-1.5f, 1.5f, 2.0f}, {-1.0f, 1.0f, 2.0f}, {0.0f, 1.0f, 4.0f}};
#else
const dzedge::Limits kLimits[kJoints] = {{-3.0f, 3.0f, 4.0f}, {-3.0f, 3.0f, 4.0f}, {-3.0f, 3.0f, 4.0f},
                                         {-3.0f, 3.0f, 4.0f}, {-3.0f, 3.0f, 4.0f}, {0.0f, 1.0f, 4.0f}};
#endif

class Bench : public dzedge::Hardware {
 public:
  explicit Bench(int fd) : fd_(fd) {}
  dzedge::Measured measure(uint8_t joint) override { return {position[joint], 0.0f, joint_faults[joint]}; }
  void drive(uint8_t joint, float to) override { position[joint] = to; }
  void torque(bool on) override { printf("torque %d\n", on); }
  uint8_t faults() override { return board_faults; }
  void send(const uint8_t* data, size_t size) override {
    if (mute > 0 && mute--) return;
    const std::string reply(reinterpret_cast<const char*>(data), size);
    std::string all = kept + reply;
    kept.clear();
    if (late > 0 && late--) {
      kept = all;
      return;
    }
    if (repeat > 0 && repeat--) all += reply;
    if (write(fd_, all.data(), all.size()) != static_cast<ssize_t>(all.size())) exit(1);
  }

  float position[kJoints] = {0.25f, -0.5f, 0.5f};
  uint8_t joint_faults[kJoints] = {}, board_faults = 0;
  int mute = 0, repeat = 0, late = 0;
  std::string kept;

 private:
  int fd_;
};

uint32_t clock_us = 4294000000u;  // wraps within the first second

uint32_t micros() { return ++clock_us; }

void verb(Bench& bench, dzedge::Core& core, const char* line) {
  unsigned joint = 0, value = 0;
  if (sscanf(line, "advance %u", &value) == 1) clock_us += value;
  float position = 0;
  if (sscanf(line, "fault %u", &value) == 1) bench.board_faults = static_cast<uint8_t>(value);
  if (sscanf(line, "joint %u %u", &joint, &value) == 2) bench.joint_faults[joint % kJoints] = static_cast<uint8_t>(value);
  if (sscanf(line, "place %u %f", &joint, &position) == 2) bench.position[joint % kJoints] = position;
  sscanf(line, "mute %d", &bench.mute);
  sscanf(line, "repeat %d", &bench.repeat);
  sscanf(line, "late %d", &bench.late);
  core.poll(micros());
  puts("ok");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  setvbuf(stdout, nullptr, _IOLBF, 0);
  const int fd = atoi(argv[1]);
  Bench bench(fd);
  dzedge::Core core(bench, kLimits, kJoints);
  std::string typed;
  for (;;) {
    pollfd both[2] = {{fd, POLLIN, 0}, {0, POLLIN, 0}};
    poll(both, 2, 2);
    uint8_t data[512];
    if (both[0].revents & POLLIN) {
      const ssize_t size = read(fd, data, sizeof data);
      for (ssize_t i = 0; i < size; i++) core.receive(data[i], micros());
    }
    if (both[1].revents != 0) {
      const ssize_t size = read(0, data, sizeof data);
      if (size <= 0) return 0;
      typed.append(reinterpret_cast<char*>(data), static_cast<size_t>(size));
      for (size_t end; (end = typed.find('\n')) != std::string::npos; typed.erase(0, end + 1))
        verb(bench, core, typed.substr(0, end).c_str());
    }
    core.poll(micros());
  }
}
