#include "plain/error.hpp"

namespace starflow {
namespace {

constexpr std::size_t most_bytes = 2000;  // of a message: some quote what they found

// Control characters written out, so that the message is one line and steers no terminal.
std::string one_line(const std::string& message) {
  constexpr char digits[] = "0123456789abcdef";
  std::string line;
  for (const char each : message.substr(0, most_bytes)) {
    const auto code = static_cast<unsigned char>(each);
    if (code < 0x20 || code == 0x7f) {
      line += {'\\', 'x', digits[code >> 4], digits[code & 15]};
    } else {
      line += each;
    }
  }
  return line;
}

}  // namespace

Error::Error(ErrorKind kind, const std::string& message) : std::runtime_error(one_line(message)), kind_(kind) {}

void usage_error(const std::string& message) { throw Error(ErrorKind::usage, message); }
void bundle_error(const std::string& message) { throw Error(ErrorKind::bundle, message); }
void backend_error(const std::string& message) { throw Error(ErrorKind::backend, message); }

}  // namespace starflow
