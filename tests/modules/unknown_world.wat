;; A component of a world of its own, which exports no command.
(component
  (core module $main
    (func (export "add") (param i32 i32) (result i32) (i32.add (local.get 0) (local.get 1))))
  (core instance $main (instantiate $main))
  (func $add (param "a" u32) (param "b" u32) (result u32) (canon lift (core func $main "add")))
  (instance $calculator (export "add" (func $add)))
  (export "example:calculator/operations@1.0.0" (instance $calculator)))
