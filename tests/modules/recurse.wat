;; Calls itself until there is no stack left; twice, so that no optimiser can make a loop of it.
(module
  (memory (export "memory") 1)
  (func $descend (param $at i32) (result i32)
    (i32.add
      (i32.load (local.get $at))
      (call $descend (i32.add (local.get $at) (call $descend (local.get $at))))))
  (func (export "_start") (drop (call $descend (i32.const 0)))))
