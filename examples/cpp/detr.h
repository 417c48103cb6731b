/* The C interface of detr.hpp, for C, Go, Rust, C# and other languages. It is a shared library, libdetr.so.
 *
 * Every function that can fail returns a status; then detr_last_error() says what was wrong and what mends it.
 * One model may be used by many threads at the same time. Results belong to the caller until detr_results_free. */
#ifndef DETR_H
#define DETR_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define DETR_API __declspec(dllexport)
#else
#define DETR_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum detr_status {
    DETR_OK = 0,
    DETR_ERROR_FILE = 1,    /* the model's file is missing, damaged, or of the wrong kind */
    DETR_ERROR_INPUT = 2,   /* an image or an argument is wrong */
    DETR_ERROR_RUNTIME = 3, /* ONNX Runtime is too old, or failed */
    DETR_ERROR_MEMORY = 4   /* there is not enough memory */
} detr_status;

typedef enum detr_color { DETR_RGB = 0, DETR_BGR = 1 } detr_color;

/* An image in the caller's memory, which must not change during detr_detect. */
typedef struct detr_image {
    const uint8_t* data; /* the first byte of the first row */
    int32_t height;      /* pixels */
    int32_t width;
    int32_t channels;  /* bytes of a pixel: 3 */
    int32_t color;     /* DETR_RGB or DETR_BGR: the order of a pixel's bytes */
    size_t row_stride; /* bytes from one row to the next; 0: no padding. An image with padding is copied. */
} detr_image;

typedef struct detr_detection {
    int64_t label;
    const char* name; /* of the label, UTF-8; it lives as long as the results, as does the mask */
    float score;      /* from 0 to 1 */
    float x_min;      /* the box, in pixels of the image; it may reach over the image's edges */
    float y_min;
    float x_max;
    float y_max;
    int32_t mask_height; /* cells of the mask, which covers the whole image; 0 if the model gives no masks */
    int32_t mask_width;
    const float* mask; /* mask_height * mask_width cells, row by row; above 0 a cell belongs to the object; NULL if there are none */
} detr_detection;

typedef struct detr_model detr_model;
typedef struct detr_results detr_results;

/* Opens a file that `detr-export onnx --end-to-end` wrote.
 * path: UTF-8. threads: of one run; 0 takes as many as the CPU has cores. spinning: 1 if idle threads may wait busily.
 * model: gets the model, or NULL if there was an error. detr_close frees it. */
DETR_API detr_status detr_open(const char* path, int32_t threads, int32_t spinning, detr_model** model);
DETR_API void detr_close(detr_model* model); /* NULL is allowed; no other call may use the model */

/* Finds the objects in `count` images of one size, whose score is above `threshold`, best first.
 * results: gets the objects, or NULL if there was an error. detr_results_free frees them. */
DETR_API detr_status detr_detect(const detr_model* model, const detr_image* images, size_t count, float threshold,
                                 detr_results** results);
/* The objects of one image, counted from 0. *count gets their number. NULL and 0 where there is no such image. */
DETR_API const detr_detection* detr_results_get(const detr_results* results, size_t image, size_t* count);
DETR_API void detr_results_free(detr_results* results); /* NULL is allowed */

/* Why the last call of this thread that failed did so, UTF-8. It is never NULL, and valid until the thread's next error. */
DETR_API const char* detr_last_error(void);

#ifdef __cplusplus
}
#endif

#endif /* DETR_H */
