// SPDX-License-Identifier: Apache-2.0
// A worker around libllama that stays alive, so that its runs can take turns with ours while a long
// context is computed only once, and that hands out the logits of every position. It does what
// llama-bench does for generation: random tokens, one llama_decode each, no sampling.
//
//   llama_probe MODEL THREADS FLASH_ATTENTION(0|1) CONTEXT_TOKENS
//
// Commands on stdin, one a line; the answer is one line on stdout, after "ok" or "error":
//   context N          makes the sequence N tokens long          ok SECONDS
//   decode N           decodes N more tokens, forgets them       ok SECONDS
//   first TEXT         the first token after TEXT, greedily      ok TOKEN
//   tokenize FILE OUT  ids of a text, one a line                 ok TOKENS
//   logits FILE OUT    of every position, f32 [tokens, vocab]    ok TOKENS VOCAB
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "llama.h"

enum { kBatchTokens = 512, kTextBytesMax = 1 << 22, kTokensMax = 1 << 20 };

struct Probe {
  struct llama_context* context;
  const struct llama_vocab* vocab;
  struct llama_batch batch;
  int length;             // Tokens in the cache.
  unsigned random_state;  // State of a linear congruential generator.
};

static double Now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void Quiet(enum ggml_log_level level, const char* text, void* data) {
  (void)data;
  if (level == GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static llama_token RandomToken(struct Probe* p) {
  p->random_state = p->random_state * 1664525u + 1013904223u;
  return (llama_token)((p->random_state >> 8) % (unsigned)llama_vocab_n_tokens(p->vocab));
}

// Appends tokens (random ones where `tokens` is null); logits for all of them or for the last.
static bool Append(struct Probe* p, const llama_token* tokens, int count, bool all_logits) {
  p->batch.n_tokens = count;
  for (int i = 0; i < count; ++i) {
    p->batch.token[i] = tokens != NULL ? tokens[i] : RandomToken(p);
    p->batch.pos[i] = p->length + i;
    p->batch.n_seq_id[i] = 1;
    p->batch.seq_id[i][0] = 0;
    p->batch.logits[i] = all_logits || i + 1 == count;
  }
  if (llama_decode(p->context, p->batch) != 0) return false;
  llama_synchronize(p->context);
  p->length += count;
  return true;
}

static bool Trim(struct Probe* p, int length) {
  p->length = length;
  if (length > 0) return llama_memory_seq_rm(llama_get_memory(p->context), 0, length, -1);
  llama_memory_clear(llama_get_memory(p->context), false);
  return true;
}

static bool SetContext(struct Probe* p, int length) {
  if (length < p->length) return Trim(p, length);
  while (p->length < length) {
    const int left = length - p->length;
    if (!Append(p, NULL, left < kBatchTokens ? left : kBatchTokens, false)) return false;
  }
  return true;
}

static bool Decode(struct Probe* p, int count) {
  for (int i = 0; i < count; ++i) {
    if (!Append(p, NULL, 1, false)) return false;
  }
  return true;
}

static int Largest(const float* logits, int count) {
  int best = 0;
  for (int i = 1; i < count; ++i) {
    if (logits[i] > logits[best]) best = i;
  }
  return best;
}

static void First(struct Probe* p, const char* text) {
  llama_token tokens[kBatchTokens];
  const int count =
      llama_tokenize(p->vocab, text, (int)strlen(text), tokens, kBatchTokens, true, false);
  if (count < 1 || !Trim(p, 0) || !Append(p, tokens, count, false)) {
    printf("error cannot run the text\n");
    return;
  }
  printf("ok %d\n", Largest(llama_get_logits_ith(p->context, -1), llama_vocab_n_tokens(p->vocab)));
}

static void Tokenize(struct Probe* p, const char* path, const char* out_path) {
  FILE *in = fopen(path, "rb"), *out = fopen(out_path, "w");
  char* text = malloc(kTextBytesMax);
  llama_token* tokens = malloc(kTokensMax * sizeof(llama_token));
  if (in == NULL || out == NULL || text == NULL || tokens == NULL) {
    printf("error %s or %s: %s\n", path, out_path, strerror(errno));
  } else {
    const int bytes = (int)fread(text, 1, kTextBytesMax, in);
    const int count = llama_tokenize(p->vocab, text, bytes, tokens, kTokensMax, true, false);
    for (int i = 0; i < count; ++i) fprintf(out, "%d\n", tokens[i]);
    printf("ok %d\n", count);
  }
  free(tokens);
  free(text);
  if (in != NULL) fclose(in);
  if (out != NULL) fclose(out);
}

static void Logits(struct Probe* p, FILE* in, FILE* out) {
  const size_t vocab = (size_t)llama_vocab_n_tokens(p->vocab);
  llama_token tokens[kBatchTokens];
  bool fine = Trim(p, 0);
  int count = kBatchTokens;
  while (fine && count == kBatchTokens) {
    for (count = 0; count < kBatchTokens && fscanf(in, "%d", &tokens[count]) == 1;) ++count;
    fine = count == 0 || Append(p, tokens, count, true);
    for (int i = 0; fine && i < count; ++i) {
      fine = fwrite(llama_get_logits_ith(p->context, i), sizeof(float), vocab, out) == vocab;
    }
  }
  if (fine && fflush(out) == 0) {
    printf("ok %d %zu\n", p->length, vocab);
  } else {
    printf("error cannot compute or write the logits\n");
  }
}

static void RunLogits(struct Probe* p, const char* path, const char* out_path) {
  FILE *in = fopen(path, "r"), *out = fopen(out_path, "wb");
  if (in == NULL || out == NULL) {
    printf("error %s or %s: %s\n", path, out_path, strerror(errno));
  } else {
    Logits(p, in, out);
  }
  if (in != NULL) fclose(in);
  if (out != NULL) fclose(out);
}

static void Answer(struct Probe* p, char* line) {
  int count = 0;
  static char path[4096], out_path[4096];
  const double start = Now();
  line[strcspn(line, "\n")] = '\0';
  if (sscanf(line, "context %d", &count) == 1) {
    const bool fine = SetContext(p, count);
    const double seconds = Now() - start;
    printf(fine ? "ok %.9f\n" : "error at %.9f s\n", seconds);
  } else if (sscanf(line, "decode %d", &count) == 1) {
    const int length = p->length;
    const bool fine = Decode(p, count);
    const double seconds = Now() - start;
    printf(Trim(p, length) && fine ? "ok %.9f\n" : "error at %.9f s\n", seconds);
  } else if (strncmp(line, "first ", 6) == 0) {
    First(p, line + 6);
  } else if (sscanf(line, "tokenize %4095s %4095s", path, out_path) == 2) {
    Tokenize(p, path, out_path);
  } else if (sscanf(line, "logits %4095s %4095s", path, out_path) == 2) {
    RunLogits(p, path, out_path);
  } else {
    printf("error unknown command\n");
  }
  fflush(stdout);
}

int main(int argc, char** argv) {
  if (argc != 5) {
    fprintf(stderr, "llama_probe MODEL THREADS FLASH_ATTENTION CONTEXT_TOKENS\n");
    return 2;
  }
  llama_log_set(Quiet, NULL);
  llama_backend_init();
  struct llama_model* model = llama_model_load_from_file(argv[1], llama_model_default_params());
  if (model == NULL) return 1;
  struct llama_context_params params = llama_context_default_params();
  params.n_threads = params.n_threads_batch = atoi(argv[2]);
  params.flash_attn_type =
      atoi(argv[3]) != 0 ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params.n_ctx = (uint32_t)atoi(argv[4]);
  params.n_batch = params.n_ubatch = kBatchTokens;
  struct Probe probe = {.context = llama_init_from_model(model, params),
                        .vocab = llama_model_get_vocab(model),
                        .batch = llama_batch_init(kBatchTokens, 0, 1),
                        .length = 0,
                        .random_state = 1};
  if (probe.context == NULL) return 1;
  char line[8192];
  while (fgets(line, sizeof(line), stdin) != NULL) Answer(&probe, line);
  llama_free(probe.context);
  llama_model_free(model);
  return 0;
}
