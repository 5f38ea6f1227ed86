"""Triton kernels of attention within a window; `window_attention` launches them.

Programs find their blocks by themselves, since the grid cannot depend on where sequences begin. Sequence s,
whose first token is start[s], has the slots from start[s] // BLOCK + s, one for each of its blocks. They end
before those of the next sequence, and there are at most tokens // BLOCK + sequences of them.

Logarithms and powers have base 2, as the GPU computes them, so the scale of the scores includes log2(e).

Every block visits as many tiles (TILES) as the window needs within a long sequence, although some are empty
at a sequence's ends: because the number is constant, the compiler can load a tile while it computes with
another.
"""

import triton
import triton.language as tl


@triton.jit
def _locate(ends, sequences, num_heads, BLOCK: tl.constexpr):
    """What a program computes: a head, a sequence's first token and length, and the index of its block."""
    slot, head = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads
    begun, first = 0, 0
    while first < sequences:
        numbers = first + tl.arange(0, 128)
        starts = tl.load(ends + numbers, mask=numbers < sequences, other=0)
        begun += tl.sum(((numbers < sequences) & (starts // BLOCK + numbers <= slot)).to(tl.int32))
        first += 128
    sequence = begun - 1
    start = tl.load(ends + sequence)
    length = tl.load(ends + sequence + 1) - start
    return head, start, length, slot - (start // BLOCK + sequence)


@triton.jit
def _load(
    rows,
    start,
    first,
    length,
    width,
    column,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """A tile (BLOCK, BLOCK_D) of a sequence, from its token `first`; zeros outside the sequence."""
    positions, dims = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK_D)[None, :]
    corner = rows + (start + first).to(tl.int64) * width + column
    mask = (first + positions >= 0) & (first + positions < length) & (dims < HEAD_DIM)
    return tl.load(corner + positions * width + dims, mask=mask, other=0.0)


@triton.jit
def _store(
    rows,
    values,
    start,
    first,
    length,
    width,
    column,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    positions, dims = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK_D)[None, :]
    corner = rows + (start + first).to(tl.int64) * width + column
    mask = (first + positions < length) & (dims < HEAD_DIM)
    tl.store(corner + positions * width + dims, values.to(rows.dtype.element_ty), mask=mask)


@triton.jit
def _near(positions, others, length, WINDOW: tl.constexpr):
    """Whether tokens (rows) and others (columns) see each other; nothing outside the sequence is seen."""
    others = tl.where((others >= 0) & (others < length), others, 1 << 30)
    return tl.abs(positions[:, None] - others[None, :]) < WINDOW


@triton.jit(do_not_specialize=["num_tokens", "sequences"])
def forward(
    query,
    key,
    value,
    ends,
    out,
    log_sums,
    query_width,
    key_width,
    value_width,
    scale,
    num_heads,
    num_tokens,
    sequences,
    WINDOW: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Attended values, and the logarithm of each query's sum of exponentials."""
    head, start, length, block = _locate(ends, sequences, num_heads, BLOCK)
    begin = block * BLOCK
    if begin < length:
        column, queries = head * HEAD_DIM, begin + tl.arange(0, BLOCK)
        query_tile = _load(query, start, begin, length, query_width, column, BLOCK, BLOCK_D, HEAD_DIM)
        highest = tl.full((BLOCK,), -1e30, tl.float32)  # finite, since a row may see nothing in a tile
        total = tl.zeros((BLOCK,), tl.float32)
        attended = tl.zeros((BLOCK, BLOCK_D), tl.float32)
        for tile in range(TILES):
            first = begin + (tile - TILES // 2) * BLOCK
            keys = _load(key, start, first, length, key_width, column, BLOCK, BLOCK_D, HEAD_DIM)
            values = _load(value, start, first, length, value_width, column, BLOCK, BLOCK_D, HEAD_DIM)
            scores = tl.dot(query_tile, tl.trans(keys), input_precision="ieee") * scale
            near = _near(queries, first + tl.arange(0, BLOCK), length, WINDOW)
            scores = tl.where(near, scores, float("-inf"))
            higher = tl.maximum(highest, tl.max(scores, 1))
            powers, shrink = tl.exp2(scores - higher[:, None]), tl.exp2(highest - higher)
            total = total * shrink + tl.sum(powers, 1)
            attended = attended * shrink[:, None]
            attended = tl.dot(powers.to(values.dtype), values, attended, input_precision="ieee")
            highest = higher
        total = tl.where(queries < length, total, 1.0)
        attended = attended / total[:, None]
        _store(out, attended, start, begin, length, num_heads * HEAD_DIM, column, BLOCK, BLOCK_D, HEAD_DIM)
        sums = log_sums + head * num_tokens + start + queries
        tl.store(sums, highest + tl.log2(total), mask=queries < length)


@triton.jit(do_not_specialize=["num_tokens", "sequences"])
def backward_queries(
    query,
    key,
    value,
    ends,
    gradient,
    out,
    log_sums,
    deltas,
    to_query,
    query_width,
    key_width,
    value_width,
    scale,
    plain_scale,
    num_heads,
    num_tokens,
    sequences,
    WINDOW: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Gradient of the queries, and `deltas`, each query's sum(gradient * output), for `backward_keys`."""
    head, start, length, block = _locate(ends, sequences, num_heads, BLOCK)
    begin = block * BLOCK
    if begin < length:
        column, queries, width = head * HEAD_DIM, begin + tl.arange(0, BLOCK), num_heads * HEAD_DIM
        query_tile = _load(query, start, begin, length, query_width, column, BLOCK, BLOCK_D, HEAD_DIM)
        gradient_tile = _load(gradient, start, begin, length, width, column, BLOCK, BLOCK_D, HEAD_DIM)
        attended = _load(out, start, begin, length, width, column, BLOCK, BLOCK_D, HEAD_DIM)
        # What softmax's derivative takes off each weight's gradient: all of them, weighted.
        delta = tl.sum(gradient_tile.to(tl.float32) * attended.to(tl.float32), 1)
        row = head * num_tokens + start + queries
        tl.store(deltas + row, delta, mask=queries < length)
        log_sum = tl.load(log_sums + row, mask=queries < length, other=0.0)
        query_gradient = tl.zeros((BLOCK, BLOCK_D), tl.float32)
        for tile in range(TILES):
            first = begin + (tile - TILES // 2) * BLOCK
            keys = _load(key, start, first, length, key_width, column, BLOCK, BLOCK_D, HEAD_DIM)
            values = _load(value, start, first, length, value_width, column, BLOCK, BLOCK_D, HEAD_DIM)
            scores = tl.dot(query_tile, tl.trans(keys), input_precision="ieee") * scale
            near = _near(queries, first + tl.arange(0, BLOCK), length, WINDOW)
            weights = tl.exp2(tl.where(near, scores - log_sum[:, None], float("-inf")))
            to_weights = tl.dot(gradient_tile, tl.trans(values), input_precision="ieee")
            to_scores = (weights * (to_weights - delta[:, None])).to(keys.dtype)
            query_gradient = tl.dot(to_scores, keys, query_gradient, input_precision="ieee")
        _store(
            to_query,
            query_gradient * plain_scale,
            start,
            begin,
            length,
            width,
            column,
            BLOCK,
            BLOCK_D,
            HEAD_DIM,
        )


@triton.jit(do_not_specialize=["num_tokens", "sequences"])
def backward_keys(
    query,
    key,
    value,
    ends,
    gradient,
    log_sums,
    deltas,
    to_key,
    to_value,
    query_width,
    key_width,
    value_width,
    scale,
    plain_scale,
    num_heads,
    num_tokens,
    sequences,
    WINDOW: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Gradients of keys and values."""
    head, start, length, block = _locate(ends, sequences, num_heads, BLOCK)
    begin = block * BLOCK
    if begin < length:
        column, positions, width = head * HEAD_DIM, begin + tl.arange(0, BLOCK), num_heads * HEAD_DIM
        keys = _load(key, start, begin, length, key_width, column, BLOCK, BLOCK_D, HEAD_DIM)
        values = _load(value, start, begin, length, value_width, column, BLOCK, BLOCK_D, HEAD_DIM)
        key_gradient = tl.zeros((BLOCK, BLOCK_D), tl.float32)
        value_gradient = tl.zeros((BLOCK, BLOCK_D), tl.float32)
        for tile in range(TILES):
            first = begin + (tile - TILES // 2) * BLOCK
            queries = first + tl.arange(0, BLOCK)
            query_tile = _load(query, start, first, length, query_width, column, BLOCK, BLOCK_D, HEAD_DIM)
            gradient_tile = _load(gradient, start, first, length, width, column, BLOCK, BLOCK_D, HEAD_DIM)
            row, inside = head * num_tokens + start + queries, (queries >= 0) & (queries < length)
            log_sum = tl.load(log_sums + row, mask=inside, other=0.0)
            delta = tl.load(deltas + row, mask=inside, other=0.0)
            # These are (keys, queries), transposed from forward.
            scores = tl.dot(keys, tl.trans(query_tile), input_precision="ieee") * scale
            near = _near(positions, queries, length, WINDOW)
            weights = tl.exp2(tl.where(near, scores - log_sum[None, :], float("-inf")))
            value_gradient = tl.dot(
                weights.to(keys.dtype), gradient_tile, value_gradient, input_precision="ieee"
            )
            to_weights = tl.dot(values, tl.trans(gradient_tile), input_precision="ieee")
            to_scores = (weights * (to_weights - delta[None, :])).to(keys.dtype)
            key_gradient = tl.dot(to_scores, query_tile, key_gradient, input_precision="ieee")
        _store(
            to_key, key_gradient * plain_scale, start, begin, length, width, column, BLOCK, BLOCK_D, HEAD_DIM
        )
        _store(to_value, value_gradient, start, begin, length, width, column, BLOCK, BLOCK_D, HEAD_DIM)
