;; Grows its memory by 1 MiB at a time, writing to all of it, until that fails: exit code 3, or until 1 GiB: 0.
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (local $begin i32) (local $count i32)
    (loop $more
      (local.set $begin (memory.grow (i32.const 16)))
      (if (i32.eq (local.get $begin) (i32.const -1)) (then (call $proc_exit (i32.const 3))))
      (memory.fill (i32.shl (local.get $begin) (i32.const 16)) (i32.const 1) (i32.const 1048576))
      (local.set $count (i32.add (local.get $count) (i32.const 1)))
      (br_if $more (i32.lt_u (local.get $count) (i32.const 1024))))))
