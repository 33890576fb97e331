#include "comparison_report.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <vector>

#include "comparison_object.hpp"

namespace zipcache_llama {
namespace {

template <class... Values>
std::string format(const char* pattern, Values... values) {
  char text[512];
  std::snprintf(text, sizeof text, pattern, values...);
  return text;
}

std::string with_interval(const interval& value, double unit, int decimals) {
  return format("%.*f [%.*f, %.*f]", decimals, unit * value.mean, decimals, unit * value.low,
                decimals, unit * value.high);
}

// Nothing without windows, whose tokens it is about.
std::optional<double> paper_ratio_of(const policy_result& result, const report_settings& settings) {
  const int tokens = settings.context + settings.generated;
  return tokens > 0 ? result.policy->paper_ratio(settings.shape, settings.numbers, tokens)
                    : std::nullopt;
}

// Columns as wide as their widest cell, the first one to the left.
class text_table {
 public:
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }

  std::string str() const {
    std::vector<std::size_t> widths;
    for (const auto& row : rows_) {
      widths.resize(std::max(widths.size(), row.size()));
      for (std::size_t i = 0; i < row.size(); ++i) {
        widths[i] = std::max(widths[i], row[i].size());
      }
    }
    std::string text;
    for (const auto& row : rows_) {
      std::string line;
      for (std::size_t i = 0; i < row.size(); ++i) {
        const std::string padding(widths[i] - row[i].size(), ' ');
        line += i == 0 ? row[i] + padding : "  " + padding + row[i];
      }
      line.erase(line.find_last_not_of(' ') + 1);
      text += line + '\n';
    }
    return text;
  }

 private:
  std::vector<std::vector<std::string>> rows_;
};

const policy_result* find(std::span<const policy_result> results, std::string_view name) {
  for (const auto& result : results) {
    if (result.policy->name == name) {
      return &result;
    }
  }
  return nullptr;
}

struct claim {
  const char* subject;
  const char* ours;
  const char* other;
};
constexpr claim claims[] = {
    {"Normalized against accumulated saliency, same probes", "paper", "accumulated"},
    {"Normalized against accumulated saliency, all rows as probes", "all_probes",
     "accumulated_all_probes"},
    {"Channel-separable against plain tokenwise values", "paper", "tokenwise_values"},
    {"Channel-separable against plain tokenwise values, keys in 16 bits", "keys_16",
     "keys_16_tokenwise"},
    {"Recent and random 10 % as probes against all rows", "paper", "all_probes"},
};

std::string verdict(const interval& difference) {
  return difference.high < 0  ? "lower, beyond chance"
         : difference.low > 0 ? "HIGHER, beyond chance"
                              : "no difference beyond chance";
}

std::string claim_sentence(const claim& c, const policy_result& ours, const policy_result& other,
                           const report_settings& settings) {
  const auto kl = paired_difference_interval(ours.kl, other.kl, settings.seed);
  const double other_kl = mean(other.kl);
  std::string text =
      format("%s (%s - %s):\n  KL %s thousandths of a nat, that is %+.1f %%: %s over %zu windows",
             c.subject, c.ours, c.other, with_interval(kl, 1000, 2).c_str(),
             100 * kl.mean / other_kl, verdict(kl).c_str(), ours.kl.size());
  const auto surprise = paired_difference_interval(ours.surprise, other.surprise, settings.seed);
  text += format(";\n  perplexity %+.2f [%+.2f, %+.2f] %%", 100 * std::expm1(surprise.mean),
                 100 * std::expm1(surprise.low), 100 * std::expm1(surprise.high));
  if (!ours.retrieved.empty()) {
    const auto retrieved =
        paired_difference_interval(ours.retrieved, other.retrieved, settings.seed);
    text += format("; lines found %+.1f [%+.1f, %+.1f] points", 100 * retrieved.mean,
                   100 * retrieved.low, 100 * retrieved.high);
  }
  return text + ".\n";
}

}  // namespace

interval retrieval_interval(const policy_result& result) {
  const auto hits = std::count(result.retrieved.begin(), result.retrieved.end(), 1.0);
  return wilson_interval(hits, static_cast<std::int64_t>(result.retrieved.size()));
}

std::string comparison_table(std::span<const policy_result> results,
                             const report_settings& settings) {
  text_table table;
  const bool lines = !results[0].retrieved.empty();
  table.add({"", "ratio", "ratio", "ratio", "perplexity", "KL to fp16", "top-1", "lines found",
             "tokens"});
  table.add({"policy", "prefill", "now", "paper", "vs fp16", "nats / 1000", "%", "%", "/ s"});
  for (const auto& result : results) {
    const auto kl = bootstrap_interval(result.kl, settings.seed);
    const auto top1 = bootstrap_interval(result.top1, settings.seed);
    const auto surprise =
        paired_difference_interval(result.surprise, results[0].surprise, settings.seed);
    const bool reference = &result == &results[0];
    const auto paper_ratio = paper_ratio_of(result, settings);
    table.add({result.policy->name, format("%.2f", result.after_prefill.ratio()),
               format("%.2f", result.after_decode.ratio()),
               paper_ratio ? format("%.2f", *paper_ratio) : "-",
               reference ? format("%.3f", std::exp(mean(result.surprise)))
                         : format("%+.2f %%", 100 * std::expm1(surprise.mean)),
               reference ? "0" : with_interval(kl, 1000, 1),
               reference ? "100" : with_interval(top1, 100, 1),
               lines ? with_interval(retrieval_interval(result), 100, 0) : "-",
               result.tokens_per_second > 0 ? format("%.1f", result.tokens_per_second) : "-"});
  }
  return table.str();
}

std::string comparison_claims(std::span<const policy_result> results,
                              const report_settings& settings) {
  std::string text;
  for (const auto& c : claims) {
    const auto* ours = find(results, c.ours);
    const auto* other = find(results, c.other);
    if (ours != nullptr && other != nullptr) {
      text += claim_sentence(c, *ours, *other, settings);
    }
  }
  return text;
}

nlohmann::ordered_json comparison_object(const policy_result& result,
                                         const policy_result& reference,
                                         const report_settings& settings) {
  const auto retrieval = [](const policy_result& of) -> nlohmann::ordered_json {
    return of.retrieved.empty() ? nlohmann::ordered_json()
                                : nlohmann::ordered_json(mean(of.retrieved));
  };
  nlohmann::ordered_json object;
  object["policy"] = result.policy->name;
  object["context"] = settings.context;
  object["generated"] = settings.generated;
  object["ratio_allocated"] = result.after_decode.ratio();
  const auto paper_ratio = paper_ratio_of(result, settings);
  object["ratio_paper"] =
      paper_ratio ? nlohmann::ordered_json(*paper_ratio) : nlohmann::ordered_json();
  object["perplexity"] = std::exp(mean(result.surprise));
  object["perplexity_fp16"] = std::exp(mean(reference.surprise));
  object["kl_mean"] = mean(result.kl);
  object["top1_agreement"] = mean(result.top1);
  object["retrieval_accuracy"] = retrieval(result);
  object["retrieval_accuracy_fp16"] = retrieval(reference);
  object["decode_tokens_per_second"] = result.tokens_per_second > 0
                                           ? nlohmann::ordered_json(result.tokens_per_second)
                                           : nlohmann::ordered_json();
  object["cache_bytes"] = result.after_decode.total_bytes();
  object["cache_bytes_fp16"] = reference.after_decode.total_bytes();
  return object;
}

std::string comparison_json(std::span<const policy_result> results,
                            const report_settings& settings) {
  std::string lines;
  for (const auto& result : results) {
    lines += comparison_object(result, results[0], settings).dump() + '\n';
  }
  return lines;
}

}  // namespace zipcache_llama
