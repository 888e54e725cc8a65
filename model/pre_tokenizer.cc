// SPDX-License-Identifier: Apache-2.0
#include "model/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <utf8proc.h>

#include "base/status.h"
#include "model/utf8.h"

namespace penstock::model {
namespace {

// Unicode's White_Space. The last part of PCRE2's \s that it lacks is U+180E.
constexpr std::string_view kWhiteSpace =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

// Enough for every real pattern on 1 MB of anything; bounds those that backtrack without end.
constexpr std::uint32_t kMatchLimit = 20'000'000;
constexpr std::uint32_t kHeapLimitKib = 64 * 1024;
constexpr std::size_t kPatternBytesMax = 64 * 1024;
constexpr std::size_t kJitStackBytesMax = std::size_t{1} << 20;

struct FreeCode {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
};
struct FreeMatchData {
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
};
struct FreeMatchContext {
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
};
struct FreeJitStack {
  void operator()(pcre2_jit_stack* p) const { pcre2_jit_stack_free(p); }
};

std::string ErrorText(int code) {
  unsigned char text[256];
  if (pcre2_get_error_message(code, text, sizeof(text)) < 0) return absl::StrCat("error ", code);
  return reinterpret_cast<const char*>(text);
}

bool IsNumeric(std::uint32_t code_point) {
  if (code_point < 0x80) return code_point >= '0' && code_point <= '9';
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code_point))) {
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
      return true;
    default:
      return false;
  }
}

}  // namespace

std::string SpellOutWhiteSpace(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char next = pattern[++i];
      if (next == 's') {
        absl::StrAppend(&out, in_class ? "" : "[", ToAbsl(kWhiteSpace), in_class ? "" : "]");
      } else if (next == 'S' && !in_class) {
        absl::StrAppend(&out, "[^", ToAbsl(kWhiteSpace), "]");
      } else {
        out.push_back(c);
        out.push_back(next);
      }
      continue;
    }
    out.push_back(c);
    if (c == '[' && !in_class) {
      in_class = true;
      // A ] that comes first stands for itself.
      if (pattern.substr(i + 1, 1) == "^") out.push_back(pattern[++i]);
      if (pattern.substr(i + 1, 1) == "]") out.push_back(pattern[++i]);
    } else if (c == '[' && pattern.substr(i + 1, 1) == ":") {
      const std::size_t end = pattern.find(":]", i + 2);  // [:alpha:]
      if (end == std::string_view::npos) continue;
      out.append(pattern.substr(i + 1, end + 2 - (i + 1)));
      i = end + 1;
    } else if (c == ']') {
      in_class = false;
    }
  }
  return out;
}

class PreTokenizer::Pattern {
 public:
  static absl::StatusOr<std::unique_ptr<Pattern>> Compile(const std::string& source);

  // Calls `piece` with the matches in `text` and with what lies between them.
  void Split(std::string_view text, absl::FunctionRef<void(std::string_view)> piece) const;

 private:
  std::unique_ptr<pcre2_code, FreeCode> code_;
};

absl::StatusOr<std::unique_ptr<PreTokenizer::Pattern>> PreTokenizer::Pattern::Compile(
    const std::string& source) {
  if (source.size() > kPatternBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(
        "split pattern has ", source.size(), " bytes, at most ", kPatternBytesMax, " are read"));
  }
  const std::string spelled = SpellOutWhiteSpace(source);
  int error = 0;
  PCRE2_SIZE offset = 0;
  auto pattern = std::make_unique<Pattern>();
  pattern->code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(spelled.data()), spelled.size(),
                                     PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error,
                                     &offset, nullptr));
  if (pattern->code_ == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("split pattern \"", source,
                                                   "\" does not compile: ", ErrorText(error),
                                                   " near byte ", offset));
  }
  // Without the JIT (no executable memory, say) the interpreter gives the same matches.
  pcre2_jit_compile(pattern->code_.get(), PCRE2_JIT_COMPLETE);
  return pattern;
}

void PreTokenizer::Pattern::Split(std::string_view text,
                                  absl::FunctionRef<void(std::string_view)> piece) const {
  // Made for each call because they are not shared between threads; both are small.
  const std::unique_ptr<pcre2_match_data, FreeMatchData> match(pcre2_match_data_create(1, nullptr));
  const std::unique_ptr<pcre2_match_context, FreeMatchContext> context(
      pcre2_match_context_create(nullptr));
  std::unique_ptr<pcre2_jit_stack, FreeJitStack> stack;
  if (match == nullptr || context == nullptr) return piece(text);
  pcre2_set_match_limit(context.get(), kMatchLimit);
  pcre2_set_heap_limit(context.get(), kHeapLimitKib);
  std::size_t done = 0;    // Everything before was handed out.
  std::size_t search = 0;  // Where the next match may start; beyond `done` after an empty match.
  while (search < text.size()) {
    const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    int rc = pcre2_match(code_.get(), subject, text.size(), search,
                         PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, match.get(), context.get());
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT && stack == nullptr) {
      stack.reset(pcre2_jit_stack_create(32 * 1024, kJitStackBytesMax, nullptr));
      if (stack == nullptr) break;
      pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
      continue;
    }
    if (rc < 0) break;
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(match.get());
    // \K could move the start of a match behind what was handed out already.
    if (ends[0] < done || ends[1] <= ends[0]) break;
    if (ends[0] > done) piece(text.substr(done, ends[0] - done));
    piece(text.substr(ends[0], ends[1] - ends[0]));
    done = search = ends[1];
  }
  if (done < text.size()) piece(text.substr(done));
}

PreTokenizer::PreTokenizer() = default;
PreTokenizer::~PreTokenizer() = default;

absl::StatusOr<std::unique_ptr<PreTokenizer>> PreTokenizer::Make(
    const std::vector<VocabularyData::Split>& splits) {
  constexpr std::size_t kSplitsMax = 32;
  if (splits.size() > kSplitsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("the pre-tokenizer has ", splits.size(), " splits, at most ", kSplitsMax));
  }
  auto made = std::unique_ptr<PreTokenizer>(new PreTokenizer);
  for (const VocabularyData::Split& split : splits) {
    if (split.digits_individually) {
      made->patterns_.push_back(nullptr);
      continue;
    }
    ASSIGN_OR_RETURN(std::unique_ptr<Pattern> pattern, Pattern::Compile(split.pattern));
    made->patterns_.push_back(std::move(pattern));
  }
  return made;
}

void PreTokenizer::Split(std::string_view text,
                         absl::FunctionRef<void(std::string_view)> piece) const {
  if (!text.empty()) SplitFrom(0, text, piece);
}

void PreTokenizer::SplitFrom(std::size_t level, std::string_view text,
                             absl::FunctionRef<void(std::string_view)> piece) const {
  if (level == patterns_.size()) return piece(text);
  const auto next = [&](std::string_view part) { SplitFrom(level + 1, part, piece); };
  if (patterns_[level] != nullptr) return patterns_[level]->Split(text, next);
  std::size_t done = 0;
  for (std::size_t at = 0; at < text.size();) {
    const Utf8Step step = NextUtf8(text.substr(at));
    if (IsNumeric(step.code_point)) {
      if (at > done) next(text.substr(done, at - done));
      next(text.substr(at, step.bytes));
      done = at + step.bytes;
    }
    at += step.bytes;
  }
  if (done < text.size()) next(text.substr(done));
}

}  // namespace penstock::model
