;; Executes `unreachable` in a function whose name a backtrace shows.
(module
  (memory (export "memory") 1)
  (func $step_into_the_trap unreachable)
  (func (export "_start") (call $step_into_the_trap)))
