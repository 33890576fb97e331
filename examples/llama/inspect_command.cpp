// inspect MODEL: hyper-parameters and tensor table of a GGUF file.
#include <cstdio>
#include <memory>
#include <string>

#include "commands.hpp"
#include "gguf.hpp"
#include "hyper_parameters.hpp"

namespace zipcache_llama {
namespace {

// Names come from the file: whatever could drive a terminal is replaced.
std::string printable(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
      c = '?';
    }
  }
  return text;
}

void inspect(const std::string& path) {
  const auto file = gguf_file::open(path);
  const auto p = read_hyper_parameters(file);
  std::printf("%s\n", printable(path).c_str());
  std::printf("  GGUF version       %u, %zu metadata entries, %zu tensors\n", file.version(),
              file.metadata().size(), file.tensors().size());
  std::printf("  architecture       %s\n", p.architecture.c_str());
  std::printf("  layers             %d\n", p.num_layers);
  std::printf("  context length     %d\n", p.context_length);
  std::printf("  hidden size        %d\n", p.hidden_size);
  std::printf("  feed-forward size  %d\n", p.feed_forward_size);
  std::printf("  heads              %d query, %d KV, of %d channels\n", p.num_qo_heads,
              p.num_kv_heads, p.head_dim);
  std::printf("  RoPE               base %g, %d channels, %s pairs\n", p.rope_base, p.rope_dim,
              p.rope == rope_layout::interleaved ? "interleaved" : "half-split");
  std::printf("  norm epsilon       %g\n", static_cast<double>(p.norm_epsilon));
  std::printf("  vocabulary         %d\n\n", p.vocab_size);
  std::printf("%-28s %-6s %-16s %12s\n", "tensor", "type", "shape", "bytes");
  std::size_t bytes = 0;
  for (const auto& tensor : file.tensors()) {
    std::string shape;
    for (const auto extent : tensor.shape) {
      shape += (shape.empty() ? "" : " x ") + std::to_string(extent);
    }
    std::printf("%-28s %-6s %-16s %12zu\n", printable(tensor.name).c_str(),
                tensor_type_name(tensor.type).c_str(), shape.c_str(), tensor.data.size());
    bytes += tensor.data.size();
  }
  std::printf("%-28s %-6s %-16s %12zu\n", "total", "", "", bytes);
}

}  // namespace

void add_inspect_command(CLI::App& program) {
  auto* command =
      program.add_subcommand("inspect", "print the hyper-parameters and tensors of a GGUF file");
  const auto path = std::make_shared<std::string>();
  command->add_option("model", *path, "GGUF file")->required();
  command->callback([path] { inspect(*path); });
}

}  // namespace zipcache_llama
