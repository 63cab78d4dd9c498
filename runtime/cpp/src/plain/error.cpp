#include "plain/error.hpp"

#include <algorithm>

namespace starflow {
namespace {

constexpr std::size_t most_bytes = 2000;  // of a message: some quote what they found

// The number of bytes of the UTF-8 character at the beginning of a text, 0 if there is none.
std::size_t character_bytes(const std::string& text, std::size_t start) {
  const auto first = static_cast<unsigned char>(text[start]);
  const std::size_t bytes = first < 0x80   ? 1
                            : first < 0xc2 ? 0
                            : first < 0xe0 ? 2
                            : first < 0xf0 ? 3
                            : first < 0xf5 ? 4
                                           : 0;
  for (std::size_t next = 1; next < bytes; ++next) {
    if (start + next >= text.size() || (static_cast<unsigned char>(text[start + next]) & 0xc0) != 0x80) return 0;
  }
  return bytes;
}

// Control characters, and bytes that are not UTF-8, written out: the message is one line and steers no terminal.
std::string one_line(const std::string& message) {
  constexpr char digits[] = "0123456789abcdef";
  const std::string text = message.substr(0, most_bytes);
  std::string line;
  for (std::size_t next = 0; next < text.size();) {
    const auto code = static_cast<unsigned char>(text[next]);
    const std::size_t bytes = character_bytes(text, next);
    if (bytes == 0 || code < 0x20 || code == 0x7f) {
      line += {'\\', 'x', digits[code >> 4], digits[code & 15]};
    } else {
      line += text.substr(next, bytes);
    }
    next += std::max<std::size_t>(bytes, 1);
  }
  return line;
}

}  // namespace

Error::Error(ErrorKind kind, const std::string& message) : std::runtime_error(one_line(message)), kind_(kind) {}

void usage_error(const std::string& message) { throw Error(ErrorKind::usage, message); }
void bundle_error(const std::string& message) { throw Error(ErrorKind::bundle, message); }
void backend_error(const std::string& message) { throw Error(ErrorKind::backend, message); }

}  // namespace starflow
