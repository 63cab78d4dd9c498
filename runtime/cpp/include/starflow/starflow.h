/* Runs bundles of autoregressive and continuous flows, for C and every language that calls C. docs/cpp.md is its
 * manual.
 *
 *   starflow_sampler *sampler = NULL;
 *   starflow_options options = STARFLOW_OPTIONS;
 *   if (starflow_open("digits.bundle", &options, &sampler) != STARFLOW_OK) { puts(starflow_last_error()); exit(1); }
 *
 * Every function that can fail returns a status and leaves its outputs alone if it fails; `starflow_last_error` is one
 * line that says why. Arrays are float32 in row-major order, the images one after the other, and belong to the caller:
 * ask for sizes first. Zeroed structures are valid requests. `struct_size` is the size of the structure that the caller
 * was compiled with, so that later versions may add fields at its end.
 */
#ifndef STARFLOW_H
#define STARFLOW_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define STARFLOW_C_API
#else
#define STARFLOW_C_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum starflow_status {
  STARFLOW_OK = 0,
  STARFLOW_USAGE = 1,     /* the request is wrong */
  STARFLOW_BUNDLE = 2,    /* the bundle is damaged, foreign, newer, or lacks what was asked for */
  STARFLOW_BACKEND = 3,   /* the backend cannot run here, or a value is not finite */
  STARFLOW_CANCELLED = 4, /* a callback asked to stop */
  STARFLOW_INTERNAL = 5   /* anything else, which is a bug */
} starflow_status;

typedef enum starflow_denoise {
  STARFLOW_DENOISE_AUTO = 0,
  STARFLOW_DENOISE_NONE = 1,
  STARFLOW_DENOISE_SCORE = 2,
  STARFLOW_DENOISE_LEARNED = 3,
  STARFLOW_DENOISE_DECODER = 4
} starflow_denoise;

/* An open bundle. One thread may use it at a time; several run at the same time. */
typedef struct starflow_sampler starflow_sampler;

/* How a bundle is opened. A text may be NULL, and a number 0, for the default. */
typedef struct starflow_options {
  size_t struct_size;      /* sizeof of this structure */
  const char* variant;     /* NULL takes the first one for the backend */
  const char* provider;    /* execution provider of ONNX Runtime: "cpu" (NULL), "cuda" or "tensorrt" */
  const char* plan;        /* "auto" (NULL), "sequential", "student", "student+N", or a file */
  const char* onnxruntime; /* ONNX Runtime's library; NULL looks for it */
  int64_t height, width;   /* of the data, for bundles of several shapes */
  int64_t batch;           /* the one batch size to run; 0 takes the smallest that holds the images, part by part */
  int32_t threads;         /* within an operator; 0 measures what is faster */
  int32_t verify;          /* other than 0: compare every file with its digest first */
  const char* backend;     /* "onnxruntime", "tensorrt", or "auto" (NULL): TensorRT if there are engines for this GPU */
  const char* tensorrt;    /* TensorRT's library; NULL looks for it */
  /* Called with a line about what works less well than it should; NULL writes it to stderr. */
  void (*warn)(void* user, const char* message);
  void* warn_user; /* what `warn` gets */
} starflow_options;
#define STARFLOW_OPTIONS {sizeof(starflow_options), NULL, NULL, NULL, NULL, 0, 0, 0, 0, 0, NULL, NULL, NULL, NULL}

/* Guidance of an image. Fields that are 0 take the default; docs/cpp.md says which family takes which of them. */
typedef struct starflow_guidance {
  double weight;          /* w >= 0; 0 is no guidance */
  const double* schedule; /* factors >= 0 of the weight, one for each flow block from block 0; NULL is 1 */
  size_t schedule_count;  /* number of flow blocks, or 0 */
  double start, end;      /* times between which it applies; both 0: all the time */
  int32_t top_only;       /* other than 0: guide the deep block alone */
  int32_t without_scale;  /* other than 0: do not guide the scale */
  int32_t without_shift;  /* other than 0: do not guide the shift */
  int32_t annealed;       /* other than 0: the weight grows linearly over the sequence */
} starflow_guidance;

/* What to sample. The number of values says how many there are: one is for all images, any other number for each. */
typedef struct starflow_request {
  size_t struct_size;                /* sizeof of this structure */
  const int64_t* labels;             /* classes [N or 1], 0 to classes - 1; none is the null class */
  size_t label_count;                /* number of labels */
  const float* condition;            /* condition tokens [N or 1, m, width] */
  size_t condition_values;           /* number of floats in `condition` */
  const float* null_condition;       /* null condition tokens [N or 1, m, width] */
  size_t null_condition_values;      /* number of floats in `null_condition` */
  const starflow_guidance* guidance; /* [N or 1]; none is no guidance */
  size_t guidance_count;             /* number of guidances */
  starflow_denoise denoise;          /* how the noise that training added to the data is removed */
  double denoising_rate;             /* fraction > 0 of the denoising step; 0 is the whole step */
  double attention_temperature;      /* > 0; 0 is 1 */
  /* Called with the work done and in total; another value than 0 cancels. NULL is none. */
  int32_t (*progress)(void* user, size_t done, size_t total);
  /* Called after each flow block with the data [n, *data_shape] of images `first` to `first` + n - 1, valid during the
   * call. NULL is none. */
  void (*on_block)(void* user, int32_t block, size_t first, size_t n, const float* data);
  void* user; /* what callbacks get */
} starflow_request;

/* Number of values of one image. */
typedef struct starflow_sizes {
  size_t struct_size;                                /* sizeof of this structure */
  size_t noise_values, data_values;                  /* of what `starflow_generate` takes and makes */
  size_t height, width, channels;                    /* of an image; 0 if the bundle makes none */
  size_t condition_tokens, condition_width, classes; /* of a condition; 0 where the bundle takes no such condition */
} starflow_sizes;

/* The error of the last call of this thread that failed; valid until its next call. Never NULL. */
STARFLOW_C_API const char* starflow_last_error(void);

/* Opens a bundle's folder; `options` may be NULL. Release the sampler with `starflow_close`, which takes NULL as well.
 */
STARFLOW_C_API starflow_status starflow_open(const char* folder, const starflow_options* options,
                                             starflow_sampler** sampler);
/* Frees a sampler and its weights. No call of it may be under way. */
STARFLOW_C_API void starflow_close(starflow_sampler* sampler);

/* Fills `sizes`, whose `struct_size` is set. */
STARFLOW_C_API starflow_status starflow_get_sizes(const starflow_sampler* sampler, starflow_sizes* sizes);

/* Loads every graph of the largest batch size now, not when it is first needed. */
STARFLOW_C_API starflow_status starflow_load(starflow_sampler* sampler);

/* Fills noise [count, noise_values]. Image i depends on the seed and i alone. */
STARFLOW_C_API starflow_status starflow_noise(const starflow_sampler* sampler, size_t count, uint64_t seed,
                                              float temperature, float* noise);

/* Fills numbers [count] with the first standard normal numbers of an image of a seed: "The noise of a seed" in
 * docs/bundle.md. */
STARFLOW_C_API void starflow_normal_numbers(uint64_t seed, uint64_t image, size_t count, float* numbers);

/* Turns noise [count, noise_values] into data [count, data_values]; `request` may be NULL. */
STARFLOW_C_API starflow_status starflow_generate(starflow_sampler* sampler, size_t count, const float* noise,
                                                 const starflow_request* request, float* data);

/* Turns data [count, data_values] into pixels [count, height, width, channels]. */
STARFLOW_C_API starflow_status starflow_to_images(starflow_sampler* sampler, size_t count, const float* data,
                                                  starflow_denoise denoise, uint8_t* pixels);

/* Turns the ids and the mask [tokens] of a text into condition tokens [condition_tokens, condition_width]. */
STARFLOW_C_API starflow_status starflow_encode_tokens(starflow_sampler* sampler, const int64_t* ids,
                                                      const int64_t* mask, size_t tokens, float* features);

#ifdef __cplusplus
}
#endif

#endif
