package translator

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"crishim/engine"
)

const securityField = "linux.security_context"

// userContext is what the security contexts of sandboxes and containers have in common.
type userContext interface {
	GetPrivileged() bool
	GetRunAsUser() *runtimeapi.Int64Value
	GetRunAsGroup() *runtimeapi.Int64Value
	GetSupplementalGroups() []int64
	GetSupplementalGroupsPolicy() runtimeapi.SupplementalGroupsPolicy
	GetReadonlyRootfs() bool
	GetSelinuxOptions() *runtimeapi.SELinuxOption
	GetSeccomp() *runtimeapi.SecurityProfile
	GetSeccompProfilePath() string
	GetApparmor() *runtimeapi.SecurityProfile
}

// podSecurity is that of the process that holds the pod's namespaces; containers do not inherit it.
func podSecurity(p *problems, in *runtimeapi.LinuxSandboxSecurityContext, d *Defaults) engine.Security {
	s := commonSecurity(p, in, "", d)
	s.AppArmor = appArmor(p, in.GetApparmor(), "")
	return s
}

func containerSecurity(p *problems, in *runtimeapi.LinuxContainerSecurityContext, pod *engine.PodSpec, d *Defaults) engine.Security {
	s := commonSecurity(p, in, in.GetRunAsUsername(), d)
	//lint:ignore SA1019 kubelets before 1.30 set only the deprecated field
	s.AppArmor = appArmor(p, in.GetApparmor(), in.GetApparmorProfile())
	s.CapAdd = capabilities(p, "add_capabilities", in.GetCapabilities().GetAddCapabilities())
	s.CapDrop = capabilities(p, "drop_capabilities", in.GetCapabilities().GetDropCapabilities())
	s.CapAmbient = capabilities(p, "add_ambient_capabilities", in.GetCapabilities().GetAddAmbientCapabilities())
	s.NoNewPrivs = in.GetNoNewPrivs()
	s.MaskedPaths = paths(p, "masked_paths", in.GetMaskedPaths())
	s.ReadonlyPaths = paths(p, "readonly_paths", in.GetReadonlyPaths())
	if s.Privileged {
		if !pod.Security.Privileged {
			p.add(securityField+".privileged", "is set, but the pod sandbox is not privileged")
		}
		unconfine(&s)
	}
	return s
}

// unconfine applies what privileged means in CRI. An AppArmor profile that was asked for by name stays, as in containerd.
func unconfine(s *engine.Security) {
	s.MaskedPaths, s.ReadonlyPaths = nil, nil
	s.Seccomp = engine.Profile{Type: engine.ProfileUnconfined}
	if s.AppArmor.Type != engine.ProfileLocalhost {
		s.AppArmor = engine.Profile{Type: engine.ProfileUnconfined}
	}
}

func commonSecurity(p *problems, in userContext, username string, d *Defaults) engine.Security {
	s := engine.Security{
		Privileged:         in.GetPrivileged(),
		UID:                userID(p, "run_as_user", in.GetRunAsUser()),
		Username:           username,
		GID:                userID(p, "run_as_group", in.GetRunAsGroup()),
		SupplementalGroups: in.GetSupplementalGroups(),
		GroupsPolicy:       engine.GroupsPolicy(in.GetSupplementalGroupsPolicy().String()),
		ReadonlyRootfs:     in.GetReadonlyRootfs(),
		Seccomp:            seccomp(p, in.GetSeccomp(), in.GetSeccompProfilePath(), d),
		SELinux:            selinux(p, in.GetSelinuxOptions()),
	}
	if s.GroupsPolicy != engine.GroupsMerge && s.GroupsPolicy != engine.GroupsStrict {
		p.add(securityField+".supplemental_groups_policy", "%s is unknown, allowed are Merge and Strict", s.GroupsPolicy)
	}
	if username != "" && !validUsername(username) {
		p.add(securityField+".run_as_username", "%.80q is no user name; numbers go into run_as_user", username)
	}
	if s.UID != nil && username != "" {
		p.add(securityField, "run_as_user and run_as_username exclude each other")
	}
	if s.GID != nil && s.UID == nil && username == "" {
		p.add(securityField+".run_as_group", "needs run_as_user or run_as_username")
	}
	if len(s.SupplementalGroups) > maxGroups {
		p.add(securityField+".supplemental_groups", "are %d, at most %d are allowed", len(s.SupplementalGroups), maxGroups)
	}
	for _, group := range s.SupplementalGroups {
		checkID(p, securityField+".supplemental_groups", group)
	}
	return s
}

const (
	// maxID is the highest uid or gid: the one above it, (uid_t)-1, means "no change" to the kernel.
	maxID = math.MaxUint32 - 1
	// maxGroups is the kernel's NGROUPS_MAX.
	maxGroups = 65536
)

func userID(p *problems, name string, in *runtimeapi.Int64Value) *int64 {
	if in == nil {
		return nil
	}
	id := in.GetValue()
	checkID(p, securityField+"."+name, id)
	return &id
}

func checkID(p *problems, field string, id int64) {
	if id < 0 || id > maxID {
		p.add(field, "%d is not within 0 to %d", id, int64(maxID))
	}
}

// validUsername refuses what an engine could take for a number or for USER:GROUP (docs/reliability.md S14).
func validUsername(s string) bool {
	name := strings.TrimSuffix(s, "$")
	_, err := strconv.ParseUint(name, 0, 64)
	return name != "" && len(s) <= maxName && errors.Is(err, strconv.ErrSyntax) && !onlyRunes(name, func(r rune) bool { return r >= '0' && r <= '9' }) &&
		(isAlnum(rune(name[0])) || name[0] == '_') &&
		onlyRunes(name, func(r rune) bool { return isNameRune(r) || r == '_' || r == '@' })
}

// knownCapabilities are the kernel's, without CAP_.
var knownCapabilities = strings.Fields(`AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN
	DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD
	NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT
	SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM`)

func capabilities(p *problems, name string, in []string) []string {
	var out []string
	for _, c := range in {
		known := strings.TrimPrefix(strings.ToUpper(c), "CAP_")
		if known != "ALL" && !slices.Contains(knownCapabilities, known) {
			p.add(securityField+".capabilities."+name, "%.80q is no capability", c)
			continue
		}
		if !slices.Contains(out, known) {
			out = append(out, known)
		}
	}
	return out
}

func paths(p *problems, name string, in []string) []string {
	var out []string
	for i, s := range in {
		out = append(out, checkPath(p, fmt.Sprintf("%s.%s[%d]", securityField, name, i), s))
	}
	return out
}

func selinux(p *problems, in *runtimeapi.SELinuxOption) *engine.SELinuxOption {
	out := engine.SELinuxOption{User: in.GetUser(), Role: in.GetRole(), Type: in.GetType(), Level: in.GetLevel()}
	if out == (engine.SELinuxOption{}) {
		return nil
	}
	for _, part := range []struct{ name, value, extra string }{
		{"user", out.User, "_.-"}, {"role", out.Role, "_.-"}, {"type", out.Type, "_.-"}, {"level", out.Level, "_.-:,"},
	} {
		if len(part.value) > maxName || !onlyRunes(part.value, func(r rune) bool { return isAlnum(r) || strings.ContainsRune(part.extra, r) }) {
			p.add(securityField+".selinux_options."+part.name, "%.80q is no SELinux %s", part.value, part.name)
		}
	}
	return &out
}

// The texts of the deprecated profile fields.
const (
	profileRuntimeDefault = "runtime/default"
	profileDockerDefault  = "docker/default"
	profileUnconfined     = "unconfined"
	profileLocalhost      = "localhost/"
)

// profile joins the structured field, which wins, with the deprecated text. field and old name them in errors.
func profile(p *problems, field, old string, in *runtimeapi.SecurityProfile, text string) engine.Profile {
	if in != nil {
		switch t := in.GetProfileType(); {
		case t == runtimeapi.SecurityProfile_Localhost:
			return engine.Profile{Type: engine.ProfileLocalhost, LocalhostRef: in.GetLocalhostRef()}
		case in.GetLocalhostRef() != "":
			p.add(field+".localhost_ref", "%.80q needs profile_type Localhost", in.GetLocalhostRef())
		case t == runtimeapi.SecurityProfile_RuntimeDefault:
			return engine.Profile{Type: engine.ProfileRuntimeDefault}
		case t == runtimeapi.SecurityProfile_Unconfined:
			return engine.Profile{Type: engine.ProfileUnconfined}
		default:
			p.add(field+".profile_type", "%s is unknown", t)
		}
		return engine.Profile{}
	}
	ref, localhost := strings.CutPrefix(text, profileLocalhost)
	switch {
	case text == "":
		return engine.Profile{}
	case text == profileRuntimeDefault, text == profileDockerDefault:
		return engine.Profile{Type: engine.ProfileRuntimeDefault}
	case text == profileUnconfined:
		return engine.Profile{Type: engine.ProfileUnconfined}
	case localhost:
		return engine.Profile{Type: engine.ProfileLocalhost, LocalhostRef: ref}
	}
	p.add(old, "%.80q is none of %s, %s, %s and %sNAME", text, profileRuntimeDefault, profileDockerDefault, profileUnconfined, profileLocalhost)
	return engine.Profile{}
}

// seccomp decides the profile; unset is unconfined in CRI. A Localhost profile must lie in the kubelet's folder, so that
// no other file of the host is read for a pod, and an empty name must not become "no profile" (kubelet CVE-2023-2431).
func seccomp(p *problems, in *runtimeapi.SecurityProfile, text string, d *Defaults) engine.Profile {
	const field = securityField + ".seccomp"
	out := profile(p, field, securityField+".seccomp_profile_path", in, text)
	if out.Type == engine.ProfileUnset {
		return engine.Profile{Type: engine.ProfileUnconfined}
	}
	if out.Type != engine.ProfileLocalhost {
		return out
	}
	if d.SeccompRoot == "" {
		p.add(field, "profiles of type Localhost are not allowed here")
		return out
	}
	ref := out.LocalhostRef
	if in == nil && ref != "" && !strings.HasPrefix(ref, "/") {
		ref = d.SeccompRoot + "/" + ref // old kubelets gave a name in the folder
	}
	out.LocalhostRef = checkPath(p, field+".localhost_ref", ref)
	if strings.HasPrefix(ref, "/") && (!under(d.SeccompRoot, out.LocalhostRef) || under(out.LocalhostRef, d.SeccompRoot)) {
		p.add(field+".localhost_ref", "%.80q is not in %s", ref, d.SeccompRoot)
	}
	return out
}

// appArmor decides the profile; unset stays so, which is the engine's default where the host has AppArmor.
func appArmor(p *problems, in *runtimeapi.SecurityProfile, text string) engine.Profile {
	const field = securityField + ".apparmor"
	out := profile(p, field, securityField+".apparmor_profile", in, text)
	if out.Type != engine.ProfileLocalhost {
		return out
	}
	name := out.LocalhostRef
	switch {
	case name == "", len(name) > maxName, name[0] == '-', strings.Contains(name, ".."),
		!onlyRunes(name, func(r rune) bool { return isAlnum(r) || strings.ContainsRune("_.-+:@", r) }):
		p.add(field+".localhost_ref", "%.80q is no name of an AppArmor profile", name)
	case name == profileUnconfined:
		// Docker and the kernel would take it for "no profile".
		p.add(field+".localhost_ref", "%q is no profile; ask for the type Unconfined", name)
	}
	return out
}
