// Package layout holds the test of the import graph: docs/architecture.md says which room may import which, and this is
// where it is enforced.
package layout
