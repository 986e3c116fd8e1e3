// Package migrate is the bridge from the shims that came before: the kubelet's built-in dockershim and cri-dockerd. It knows
// what they leave on a node beside Docker's own objects (checkpoints, CNI results, rules for host ports) and how their pods
// are taken over.
//
// What another shim wrote is advice: it is compared with the Docker Engine, and it is neither changed nor deleted before the
// pod that it is about has gone, so that the way back stays open.
package migrate
