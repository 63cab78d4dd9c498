#include "bundle/bundle.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <set>
#include <sstream>

#include "plain/error.hpp"
#include "plain/json.hpp"
#include "plain/sha256.hpp"

namespace starflow {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t most_manifest_bytes = std::size_t{8} << 20;
constexpr std::size_t most_header_bytes = std::size_t{100} << 20;
const char* const again = "; copy or export it again";

// Where a tensor of a safetensors file lies, which must be as long as its type and shape say.
std::pair<std::uint64_t, std::uint64_t> tensor_place(const Json& entry) {
  static const std::map<std::string, std::uint64_t> bits{
      {"BOOL", 8},  {"U8", 8},   {"I8", 8},   {"F8_E4M3", 8}, {"F8_E5M2", 8}, {"I16", 16}, {"U16", 16}, {"F16", 16},
      {"BF16", 16}, {"I32", 32}, {"U32", 32}, {"F32", 32},    {"I64", 64},    {"U64", 64}, {"F64", 64}};
  const auto type = bits.find(entry.at("dtype").get<std::string>());
  if (type == bits.end()) throw Misfit("a tensor has the type " + shown(entry["dtype"]));
  std::uint64_t bytes = type->second / 8;
  for (const Json& size : entry.at("shape")) {
    if (!size.is_number_unsigned()) throw Misfit("a shape has the size " + shown(size));
    const auto value = size.get<std::uint64_t>();
    if (value > 0 && bytes > (std::uint64_t{1} << 60) / value) throw Misfit("a tensor is too large");
    bytes *= value;
  }
  const Json& offsets = entry.at("data_offsets");
  if (offsets.size() != 2 || !offsets[0].is_number_unsigned() || !offsets[1].is_number_unsigned())
    throw Misfit("a tensor has no place");
  const std::pair<std::uint64_t, std::uint64_t> place{offsets[0].get<std::uint64_t>(), offsets[1].get<std::uint64_t>()};
  if (place.second - place.first != bytes) throw Misfit("a tensor has another length than its shape says");
  return place;
}

// The JSON header of a safetensors file, which must fit its size.
Json tensor_header(const std::string& path, std::uint64_t size) {
  std::ifstream file(path, std::ios::binary);
  std::uint64_t length = 0;
  std::array<unsigned char, 8> start{};
  file.read(reinterpret_cast<char*>(start.data()), 8);
  for (std::size_t index = 8; index-- > 0;) length = length << 8 | start[index];
  if (!file || size < 8 || length == 0 || length > std::min<std::uint64_t>(most_header_bytes, size - 8))
    throw Misfit("it does not begin with a header");
  std::string text(length, ' ');
  file.read(text.data(), static_cast<std::streamsize>(length));
  Json header = parse_json(text);
  if (!header.is_object()) throw Misfit("it is no object");
  std::map<std::uint64_t, std::uint64_t> parts;  // where tensors begin and end
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    const auto [first, last] = tensor_place(entry);
    if (first > last || (first < last && !parts.emplace(first, last).second))
      throw Misfit("the place of " + name + " does not fit");
  }
  std::uint64_t end = 0;
  for (const auto& [first, last] : parts) {
    if (first != end) throw Misfit("its tensors overlap, or leave gaps");
    end = last;
  }
  if (size != 8 + length + end)
    throw Misfit("it says " + std::to_string(8 + length + end) + " bytes, but the file has " + std::to_string(size));
  return header;
}

// Whether a text has a word, between white space.
bool has_word(const std::string& text, const std::string& word) {
  std::istringstream words(text);
  for (std::string each; words >> each;) {
    if (each == word) return true;
  }
  return false;
}

std::string read_manifest_text(const fs::path& root) {
  const std::string name = (root / "manifest.json").string();
  std::error_code failed;  // of a link to itself
  if (!fs::exists(name, failed))
    bundle_error(root.string() + ": has no manifest.json; a bundle is a folder written by `starflow export`");
  try {
    std::string text = read_regular(name, most_manifest_bytes);
    const fs::path digests = root / "manifest.sha256";
    if (fs::exists(digests, failed) && !has_word(read_regular(digests.string(), 4096), sha256(text))) {
      throw std::runtime_error(
          "was changed after it was written; copy or export the bundle again, or remove manifest.sha256 to open it as "
          "it is");
    }
    return text;
  } catch (const std::runtime_error& error) {
    bundle_error(name + ": " + error.what());
  }
}

}  // namespace

bool lies_inside(const fs::path& file, const fs::path& folder) {
  std::error_code missing, failed;
  const fs::path found = fs::canonical(file, missing), root = fs::canonical(folder, failed);
  if (missing || failed) return true;  // which is said later
  if (std::mismatch(root.begin(), root.end(), found.begin(), found.end()).first == root.end()) return true;
  for (fs::path each = root; each.has_relative_path(); each = each.parent_path()) {
    if (each.parent_path().filename() == "snapshots")
      return found.parent_path() == each.parent_path().parent_path() / "blobs";
  }
  return false;
}

std::string read_regular(const std::string& path, std::size_t most_bytes) {
  // O_NONBLOCK: opening a pipe must not wait for a writer.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  struct stat found{};
  if (descriptor < 0 || ::fstat(descriptor, &found) != 0) {
    const std::string why = std::strerror(errno);
    if (descriptor >= 0) ::close(descriptor);
    throw std::runtime_error("cannot be read (" + why + ")");
  }
  std::string content;
  const bool regular = S_ISREG(found.st_mode), small = static_cast<std::uint64_t>(found.st_size) <= most_bytes;
  ssize_t got = 0;
  if (regular && small) {
    content.resize(static_cast<std::size_t>(found.st_size));
    std::size_t done = 0;
    while (done < content.size() && (got = ::read(descriptor, content.data() + done, content.size() - done)) > 0)
      done += static_cast<std::size_t>(got);
    content.resize(done);
  }
  ::close(descriptor);
  if (!regular) throw std::runtime_error("is no file");
  if (!small) throw std::runtime_error("has more than " + std::to_string(most_bytes) + " bytes");
  if (got < 0) throw std::runtime_error("cannot be read");
  return content;
}

std::vector<float> float32_tensor(const std::string& content, const std::string& name, std::int64_t rows,
                                  std::int64_t columns) {
  std::uint64_t length = 0;
  if (content.size() < 8) return {};
  for (std::size_t index = 8; index-- > 0;) length = length << 8 | static_cast<unsigned char>(content[index]);
  if (length > content.size() - 8) return {};
  const Json header = Json::parse(content.substr(8, length), nullptr, false);
  if (!header.is_object() || !header.contains(name) || !header[name].is_object()) return {};
  const Json& entry = header[name];
  const std::uint64_t bytes = static_cast<std::uint64_t>(rows) * static_cast<std::uint64_t>(columns) * sizeof(float);
  const auto is = [&entry](const char* field, const Json& value) {
    return entry.contains(field) && entry[field] == value;
  };
  if (!is("dtype", "F32") || !is("shape", Json{rows, columns}) || !entry.contains("data_offsets") ||
      !entry["data_offsets"].is_array() || entry["data_offsets"].size() != 2 ||
      !entry["data_offsets"][0].is_number_unsigned())
    return {};
  const auto first = entry["data_offsets"][0].get<std::uint64_t>();
  if (first > content.size() - 8 - length || bytes > content.size() - 8 - length - first) return {};
  std::vector<float> values(bytes / sizeof(float));
  std::memcpy(values.data(), content.data() + 8 + length + first, bytes);
  return values;
}

Bundle::Bundle(const std::string& folder) : root_(folder) {
  std::error_code failed;
  if (!fs::exists(root_, failed))
    usage_error(folder + ": does not exist; a bundle is a folder written by `starflow export`");
  if (!fs::is_directory(root_, failed))
    usage_error(folder + ": is a file; a bundle is a folder written by `starflow export`");
  manifests_ = read_manifests(read_manifest_text(root_), (root_ / "manifest.json").string());
  for (const auto& sizes : manifests_) {
    for (const Manifest& manifest : sizes) {
      for (const File& file : manifest.files()) check_file(file);
    }
  }
}

void Bundle::check_file(const File& file) {
  const std::string name = path(file);
  if (stamps_.count(file.path) > 0 && std::get<1>(stamps_[file.path]) == file.bytes) return;
  if (!lies_inside(name, root_))
    bundle_error(root_.string() + ": the manifest names " + file.path + ", which lies outside the bundle");
  std::error_code failed;
  if (!fs::is_regular_file(name, failed)) bundle_error(name + ": is missing; export the bundle again");
  const Stamp found = stamp(file);
  if (std::get<1>(found) != file.bytes)
    bundle_error(name + ": has " + std::to_string(std::get<1>(found)) + " bytes, the manifest says " +
                 std::to_string(file.bytes) + again);
  if (fs::path(name).extension() == ".safetensors") {
    try {
      tensor_header(name, static_cast<std::uint64_t>(file.bytes));
    } catch (const std::exception& error) {  // a Misfit, or one of the JSON library
      bundle_error(name + ": its header is damaged (" + error.what() + ")" + again);
    }
  }
  stamps_[file.path] = found;
}

Bundle::Stamp Bundle::stamp(const File& file) const {
  struct stat found{};
  if (::stat(path(file).c_str(), &found) != 0) return {};
  return {found.st_ino, found.st_size, found.st_mtim.tv_sec, found.st_mtim.tv_nsec};
}

void Bundle::check_unchanged(std::initializer_list<const File*> files) const {
  for (const File* file : files) {
    if (stamp(*file) != stamps_.at(file->path))
      bundle_error(path(*file) + ": changed since the bundle was opened; open it again");
  }
}

std::string Bundle::content(const File& file) const {
  check_unchanged({&file});
  std::string content;
  try {
    content = read_regular(path(file), static_cast<std::size_t>(file.bytes));
  } catch (const std::runtime_error& error) {
    bundle_error(path(file) + ": " + error.what());
  }
  if (sha256(content) != file.sha256) bundle_error(path(file) + ": its content is not what was exported" + again);
  return content;
}

void Bundle::verify() const {
  std::set<std::string> done;
  for (const auto& sizes : manifests_) {
    for (const Manifest& manifest : sizes) {
      for (const File& file : manifest.files()) {
        if (!done.insert(file.path).second) continue;
        std::ifstream stream(path(file), std::ios::binary);
        std::vector<char> part(1 << 20);
        Sha256 digest;
        while (stream.read(part.data(), static_cast<std::streamsize>(part.size())) || stream.gcount() > 0)
          digest.add(part.data(), static_cast<std::size_t>(stream.gcount()));
        if (digest.hexadecimal() != file.sha256)
          bundle_error(path(file) + ": its content is not what was exported" + again);
      }
    }
  }
}

std::vector<Manifest> Bundle::at(std::int64_t height, std::int64_t width, std::int64_t batch) const {
  const std::vector<Manifest>* chosen = height == 0 && width == 0 ? &manifests_[0] : nullptr;
  std::string shapes, batches;
  for (const auto& sizes : manifests_) {
    const auto& shape = sizes[0].model.data_shape;
    if (shape.size() != 3) continue;
    if (shape[1] == height && shape[2] == width) chosen = &sizes;
    shapes += (shapes.empty() ? "" : ", ") + std::to_string(shape[1]) + "x" + std::to_string(shape[2]);
  }
  if (chosen == nullptr)
    usage_error("shape " + std::to_string(height) + "x" + std::to_string(width) + ": this bundle has " +
                (shapes.empty() ? "points" : shapes) + "; `starflow export --shape` adds others");
  if (batch == 0) return *chosen;
  for (const Manifest& manifest : *chosen) {
    if (manifest.batch == batch) return {manifest};
    batches = std::to_string(manifest.batch) + (batches.empty() ? "" : ", ") + batches;
  }
  usage_error("batch " + std::to_string(batch) + ": this bundle has " + batches +
              "; `starflow export --batch` adds others");
}

}  // namespace starflow
