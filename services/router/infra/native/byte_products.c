/* One text against every adapter of a large pool: inner products of rows of bytes with a vector of 16-bit numbers.

   Whole numbers throughout, so sums are exact, whatever the order that a compiler's vectors take. Rows are read once,
   from one end to the other: what a search costs is reading them. Plain C on purpose: compilers know this loop and turn
   it into the multiply-add of pairs that every processor family has. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CLONED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONED
#endif

/* What is asked of memory ahead of time: pools of this kind are larger than caches. */
#define ROWS_AHEAD 8
#define CACHE_LINE 64

CLONED static void multiply(const int8_t *restrict rows, int64_t num_rows, int64_t width, const int16_t *restrict asked,
                            int32_t *restrict products) {
    for (int64_t row = 0; row < num_rows; row++) {
        const int8_t *stored = rows + row * width;
        /* Addresses behind the last row do no harm. */
        for (int64_t i = 0; i < width; i += CACHE_LINE) __builtin_prefetch(stored + ROWS_AHEAD * width + i, 0, 2);
        int32_t sum = 0;
        for (int64_t i = 0; i < width; i++) sum += (int32_t)(int16_t)stored[i] * asked[i];
        products[row] = sum;
    }
}

/* byte_products(rows, asked, products): buffers of int8 [L, V], int16 [V] and int32 [L], each in one piece. */
static PyObject *byte_products(PyObject *self, PyObject *args) {
    (void)self;
    Py_buffer rows, asked, products;
    if (!PyArg_ParseTuple(args, "y*y*w*", &rows, &asked, &products)) return NULL;
    const Py_ssize_t width = asked.len / (Py_ssize_t)sizeof(int16_t);
    const Py_ssize_t num_rows = products.len / (Py_ssize_t)sizeof(int32_t);
    const int fits = rows.len == num_rows * width;
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        multiply(rows.buf, num_rows, width, asked.buf, products.buf);
        Py_END_ALLOW_THREADS
    } else {
        PyErr_Format(PyExc_ValueError, "%zd rows of %zd bytes need %zd bytes, and there are %zd", num_rows, width,
                     num_rows * width, rows.len);
    }
    PyBuffer_Release(&rows);
    PyBuffer_Release(&asked);
    PyBuffer_Release(&products);
    if (!fits) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"byte_products", byte_products, METH_VARARGS, "products = rows asked, exactly, without the interpreter's lock."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_native", .m_size = -1, .m_methods = functions};

PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&definition); }
