// Package failpoint lets tests fail, delay or kill the daemon at a named step. In a build without the tag "failpoint"
// (every shipped one) Hit compiles to nothing.
package failpoint
