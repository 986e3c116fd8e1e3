// Package failpoint lets tests fail, delay or kill the daemon, or a pod's monitor, at a named step. In a build without the tag "failpoint"
// (every shipped one) it compiles to nothing.
//
// A step has a name before and after: Around makes both, Transport those of every request to a Docker Engine that changes
// something. What every durable or external step passes through (records, files, plugins, requests, pins) has its
// failpoint there and not at its callers, so that none is forgotten; tests learn the names from a trace.
package failpoint

// Around is do between the steps NAME.before and NAME.after; the second is hit where do succeeded. An error at either is
// the step's: a step that was not made, or one that was made and told of as failed.
func Around(name string, do func() error) error {
	if err := Hit(name + ".before"); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return Hit(name + ".after")
}
