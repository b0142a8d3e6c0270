;; Calls itself until there is no stack left. What it adds up afterwards keeps an optimiser from making it a loop.
(module
  (memory (export "memory") 1)
  (func $descend (param $depth i32) (result i32)
    (i32.add (i32.load (i32.const 0)) (call $descend (i32.add (local.get $depth) (i32.const 1)))))
  (func (export "_start") (drop (call $descend (i32.const 0)))))
