"""What must hold when parts of a node die: real engines, a supervised sandboxer, and somebody who kills."""
