"""How leaves of 16 bits are loaded and stored, as LLVM IR; see `gpuopt.engines.storage`."""

from __future__ import annotations

from gpuopt.engines.storage import FIRST, FOURTH, GOLDEN, SECOND, THIRD, signed

FUNCTIONS = f"""
define internal float @wide.bfloat16(i16 %bits) alwaysinline {{
  %wide = zext i16 %bits to i32
  %high = shl i32 %wide, 16
  %x = bitcast i32 %high to float
  ret float %x
}}

define internal i16 @narrow.bfloat16(float %x) alwaysinline {{
  %bits = bitcast float %x to i32
  %high = lshr i32 %bits, 16
  %odd = and i32 %high, 1
  %half = add i32 %odd, 32767
  %up = add i32 %bits, %half
  %narrow = call i16 @upper(float %x, i32 %up)
  ret i16 %narrow
}}

define internal i16 @upper(float %x, i32 %rounded) alwaysinline {{
  %bits = bitcast float %x to i32
  %nan = fcmp uno float %x, %x
  %quiet = or i32 %bits, 4194304
  %kept = select i1 %nan, i32 %quiet, i32 %rounded
  %high = lshr i32 %kept, 16
  %narrow = trunc i32 %high to i16
  ret i16 %narrow
}}

define internal float @wide.float16(i16 %bits) alwaysinline {{
  %half = bitcast i16 %bits to half
  %x = fpext half %half to float
  ret float %x
}}

define internal i16 @narrow.float16(float %x) alwaysinline {{
  %half = fptrunc float %x to half
  %bits = bitcast half %half to i16
  ret i16 %bits
}}

define internal float @joined(i16 %high, i16 %low) alwaysinline {{
  %h = zext i16 %high to i32
  %l = zext i16 %low to i32
  %size = and i32 %h, 32767
  %zero = icmp eq i32 %size, 0
  %is.up = icmp uge i32 %l, 32768
  %stale = and i1 %zero, %is.up
  %own = select i1 %stale, i32 0, i32 %l
  %up = lshr i32 %own, 15
  %down = sub i32 %h, %up
  %shifted = shl i32 %down, 16
  %bits = or i32 %shifted, %own
  %x = bitcast i32 %bits to float
  ret float %x
}}

define internal i16 @high(float %x) alwaysinline {{
  %bits = bitcast float %x to i32
  %up = add i32 %bits, 32768
  %narrow = call i16 @upper(float %x, i32 %up)
  ret i16 %narrow
}}

define internal i16 @low(float %x) alwaysinline {{
  %bits = bitcast float %x to i32
  %nan = fcmp uno float %x, %x
  %kept = select i1 %nan, i32 0, i32 %bits
  %narrow = trunc i32 %kept to i16
  ret i16 %narrow
}}

define internal i64 @leaf.key(i64 %key, i64 %leaf) alwaysinline {{
  %own = and i64 %leaf, 4294967295
  %number = add i64 %own, 1
  %far = mul i64 %number, {signed(GOLDEN, 64)}
  %a = add i64 %key, %far
  %a.high = lshr i64 %a, 30
  %a.mixed = xor i64 %a, %a.high
  %b = mul i64 %a.mixed, {signed(FIRST, 64)}
  %b.high = lshr i64 %b, 27
  %b.mixed = xor i64 %b, %b.high
  %c = mul i64 %b.mixed, {signed(SECOND, 64)}
  %c.high = lshr i64 %c, 31
  %mixed = xor i64 %c, %c.high
  ret i64 %mixed
}}

define internal i32 @random(i64 %key, i64 %element) alwaysinline {{
  %low = trunc i64 %key to i32
  %upper = lshr i64 %key, 32
  %high = trunc i64 %upper to i32
  %number = trunc i64 %element to i32
  %a = xor i32 %number, %low
  %a.high = lshr i32 %a, 16
  %a.mixed = xor i32 %a, %a.high
  %b = mul i32 %a.mixed, {signed(THIRD, 32)}
  %b.high = lshr i32 %b, 13
  %b.mixed = xor i32 %b, %b.high
  %c = mul i32 %b.mixed, {signed(FOURTH, 32)}
  %c.high = lshr i32 %c, 16
  %c.mixed = xor i32 %c, %c.high
  %d = xor i32 %c.mixed, %high
  %bits = lshr i32 %d, 16
  ret i32 %bits
}}

define internal i16 @random.bfloat16(float %x, i32 %random) alwaysinline {{
  %bits = bitcast float %x to i32
  %up = add i32 %bits, %random
  %narrow = call i16 @upper(float %x, i32 %up)
  ret i16 %narrow
}}

define internal i16 @random.float16(float %x, i32 %random) alwaysinline {{
  %bits = bitcast float %x to i32
  %sign.low = lshr i32 %bits, 16
  %sign = and i32 %sign.low, 32768
  %size = and i32 %bits, 2147483647
  %is.tiny = icmp ult i32 %size, {0x38800000}
  %size.tiny = select i1 %is.tiny, i32 %size, i32 0
  %tiny = bitcast i32 %size.tiny to float
  %multiples = fmul float %tiny, 0x4270000000000000
  %fixed = fptoui float %multiples to i32
  %fixed.up = add i32 %fixed, %random
  %small = lshr i32 %fixed.up, 16
  %random.high = lshr i32 %random, 3
  %up = add i32 %size, %random.high
  %up.high = lshr i32 %up, 13
  %large = sub i32 %up.high, {0x1C000}
  %fits = icmp ult i32 %size, {0x47800000}
  %large.or.infinite = select i1 %fits, i32 %large, i32 {0x7C00}
  %number = select i1 %is.tiny, i32 %small, i32 %large.or.infinite
  %nan = fcmp uno float %x, %x
  %found = select i1 %nan, i32 {0x7E00}, i32 %number
  %all = or i32 %sign, %found
  %narrow = trunc i32 %all to i16
  ret i16 %narrow
}}
"""
"""Functions from and to 16 bits."""
