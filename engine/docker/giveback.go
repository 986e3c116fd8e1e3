package docker

import "crishim/engine/docker/logpump"

// GiveBackLog puts the old shims' link to Docker's file in the place of the CRI log of a container that Docker names and labels
// so, see logpump.GiveBack. It is for who has the daemon stopped. linked says that there was a log; OK for containers of others.
func GiveBackLog(name string, labels map[string]string, jsonPath string) (linked bool, err error) {
	logPath := labels[labelLogPath]
	if classify(labels, name) != workload || logPath == "" || jsonPath == "" {
		return false, nil
	}
	return logpump.GiveBack(logPath, trustedRoot(logPath, labels[labelLogDirectory]), jsonPath)
}
