/* The Python face of the CPU kernel: a table object made once per batch, applied once per linear layer and step. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stddef.h>

#include "decode_attention.h"
#include "roc_kernel.h"
#include "small_linear.h"

typedef struct {
    PyObject_HEAD
    RocTable table;
    RocModule *modules;
    Py_ssize_t num_modules;
    int num_threads;
    PyObject *owners; /* keeps the arrays alive that the pointers lead to */
} TableObject;

static int table_init(TableObject *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"sizes", "arrays", "modules", "num_threads", "owners", NULL};
    PyObject *sizes, *arrays, *modules, *owners;
    int num_threads;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!O!iO", names, &PyTuple_Type, &sizes, &PyTuple_Type, &arrays,
                                     &PyList_Type, &modules, &num_threads, &owners))
        return -1;
    RocTable *t = &self->table;
    if (!PyArg_ParseTuple(sizes, "LLLL", &t->num_tokens, &t->num_places, &t->max_slots, &t->num_blocks)) return -1;
    unsigned long long p[12];
    if (!PyArg_ParseTuple(arrays, "KKKKKKKKKKKK", &p[0], &p[1], &p[2], &p[3], &p[4], &p[5], &p[6], &p[7], &p[8], &p[9],
                          &p[10], &p[11]))
        return -1;
    t->token_plans = (const int32_t *)p[0];
    t->token_places = (const int32_t *)p[1];
    t->plan_slots = (const int32_t *)p[2];
    t->plan_groups = (const int32_t *)p[3];
    t->plan_by_norm = (const uint8_t *)p[4];
    t->group_slots = (const int32_t *)p[5];
    t->slot_columns = (const int32_t *)p[6];
    t->slot_factors = (const float *)p[7];
    t->adapter_columns = (const int32_t *)p[8];
    t->user_tokens = (const int32_t *)p[9];
    t->user_places = (const int32_t *)p[10];
    t->blocks = (const RocBlock *)p[11];
    const Py_ssize_t num_modules = PyList_GET_SIZE(modules);
    RocModule *filled = PyMem_Calloc((size_t)(num_modules ? num_modules : 1), sizeof *filled);
    if (filled == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < num_modules; i++) {
        PyObject *item = PyList_GET_ITEM(modules, i);
        unsigned long long q[5];
        if (item == Py_None) continue; /* no adapter of the step targets this layer: width stays 0 */
        if (!PyArg_ParseTuple(item, "KKKKKLL", &q[0], &q[1], &q[2], &q[3], &q[4], &filled[i].width,
                              &filled[i].height)) {
            PyMem_Free(filled);
            return -1;
        }
        filled[i].a = (const float *)q[0];
        filled[i].b = (const float *)q[1];
        filled[i].norms = (const float *)q[2];
        filled[i].rows = (const int32_t *)q[3];
        filled[i].budgets = (const int32_t *)q[4];
    }
    PyMem_Free(self->modules);
    self->modules = filled;
    self->num_modules = num_modules;
    self->num_threads = num_threads < 1 ? 1 : num_threads;
    Py_INCREF(owners);
    Py_XSETREF(self->owners, owners);
    return 0;
}

static void table_dealloc(TableObject *self) {
    PyMem_Free(self->modules);
    Py_XDECREF(self->owners);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

/* apply(module_idx, x, x_stride, y, y_stride): addresses of float32 data; strides in elements. */
static PyObject *table_apply(TableObject *self, PyObject *const *args, Py_ssize_t num_args) {
    if (num_args != 5) {
        PyErr_SetString(PyExc_TypeError, "apply takes module_idx, x, x_stride, y, y_stride");
        return NULL;
    }
    const Py_ssize_t idx = PyLong_AsSsize_t(args[0]);
    const float *x = (const float *)PyLong_AsVoidPtr(args[1]);
    const long long x_stride = PyLong_AsLongLong(args[2]);
    float *y = (float *)PyLong_AsVoidPtr(args[3]);
    const long long y_stride = PyLong_AsLongLong(args[4]);
    if (PyErr_Occurred()) return NULL;
    if (idx < 0 || idx >= self->num_modules) {
        PyErr_SetString(PyExc_IndexError, "no such module");
        return NULL;
    }
    const RocModule *module = &self->modules[idx];
    int status = 0;
    if (module->width > 0) {
        Py_BEGIN_ALLOW_THREADS
        status = roc_apply(&self->table, module, x, x_stride, y, y_stride, self->num_threads);
        Py_END_ALLOW_THREADS
    }
    if (status != 0) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyMethodDef table_methods[] = {
    {"apply", (PyCFunction)(void (*)(void))table_apply, METH_FASTCALL, "Add a layer's ROC output to y, in place."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject table_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "services.worker.kernels._native.Table",
    .tp_basicsize = sizeof(TableObject),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "One step's ROC work, for every linear layer.",
    .tp_methods = table_methods,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)table_init,
    .tp_dealloc = (destructor)table_dealloc,
};

/* small_linear(x, x_stride, num_tokens, w, bias, width, height, y, y_stride, num_threads): addresses of float32 data. */
static PyObject *call_small_linear(PyObject *self, PyObject *const *args, Py_ssize_t num_args) {
    (void)self;
    long long values[10];
    if (num_args != 10) {
        PyErr_SetString(PyExc_TypeError, "small_linear takes ten integers");
        return NULL;
    }
    for (int i = 0; i < 10; i++) values[i] = PyLong_AsLongLong(args[i]);
    if (PyErr_Occurred()) return NULL;
    Py_BEGIN_ALLOW_THREADS
    small_linear((const float *)(intptr_t)values[0], values[1], values[2], (const float *)(intptr_t)values[3],
                 (const float *)(intptr_t)values[4], values[5], values[6], (float *)(intptr_t)values[7], values[8],
                 (int)values[9]);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* decode_attention(shape, scaling, softcap, q, keys, values, slots, first, until, out, num_threads): `shape` holds the six
   sizes of AttentionShape; addresses of float32 data and of int64 indices. */
static PyObject *call_decode_attention(PyObject *self, PyObject *args) {
    (void)self;
    AttentionShape shape;
    unsigned long long p[7];
    int num_threads;
    if (!PyArg_ParseTuple(args, "(LLLLLL)ffKKKKKKKi", &shape.num_tokens, &shape.num_heads, &shape.num_kv_heads,
                          &shape.head_dim, &shape.slot_stride, &shape.head_stride, &shape.scaling, &shape.softcap, &p[0],
                          &p[1], &p[2], &p[3], &p[4], &p[5], &p[6], &num_threads))
        return NULL;
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = decode_attention(&shape, (const float *)p[0], (const float *)p[1], (const float *)p[2],
                              (const int64_t *)p[3], (const int64_t *)p[4], (const int64_t *)p[5], (float *)p[6],
                              num_threads < 1 ? 1 : num_threads);
    Py_END_ALLOW_THREADS
    if (status != 0) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"decode_attention", call_decode_attention, METH_VARARGS, "Attention of single tokens, each over its own slot."},
    {"small_linear", (PyCFunction)(void (*)(void))call_small_linear, METH_FASTCALL, "A linear layer for a few tokens."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_native", .m_size = -1, .m_methods = functions};

PyMODINIT_FUNC PyInit__native(void) {
    if (PyType_Ready(&table_type) < 0) return NULL;
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL) return NULL;
    Py_INCREF(&table_type);
    if (PyModule_AddObject(module, "Table", (PyObject *)&table_type) < 0) {
        Py_DECREF(&table_type);
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
