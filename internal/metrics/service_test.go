package metrics_test

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const unit = "systemd/cc-relay.service"

// The tests of rows of the catalogue of faults, by the rows' names.

func TestSecurity(t *testing.T) {
	t.Run("S42", func(t *testing.T) {
		t.Run("the unit", testSandbox)
		t.Run("a unit that lacks something", testSandboxMissesNothing)
		t.Run("systemd-analyze", testExposure)
	})
}

// sandbox is what the unit must say of each directive. Source: man systemd.exec.
var sandbox = map[string]string{
	"DynamicUser": "yes", "PrivateUsers": "yes",
	"NoNewPrivileges": "yes", "CapabilityBoundingSet": "", "AmbientCapabilities": "", "RestrictSUIDSGID": "yes",
	"ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes", "PrivateDevices": "yes", "PrivateMounts": "yes",
	"DevicePolicy": "closed", "PrivateIPC": "yes", "RemoveIPC": "yes", "KeyringMode": "private",
	"ProtectClock": "yes", "ProtectControlGroups": "yes", "ProtectHostname": "yes", "ProtectKernelLogs": "yes",
	"ProtectKernelModules": "yes", "ProtectKernelTunables": "yes", "ProtectProc": "invisible",
	"RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX", "RestrictNamespaces": "yes", "RestrictRealtime": "yes",
	"LockPersonality": "yes", "MemoryDenyWriteExecute": "yes",
	"SystemCallArchitectures": "native", "SystemCallFilter": "@system-service ~@privileged @resources @keyring",
	"LimitCORE": "0", "UMask": "0077", "StateDirectoryMode": "0700", "RuntimeDirectoryMode": "0700",
}

// undone are directives that give back what the sandbox takes.
var undone = []string{"User", "Group", "SupplementaryGroups", "ReadWritePaths", "BindPaths", "ExecPaths", "DeviceAllow"}

// gaps is what the unit lacks of the sandbox.
func gaps(text string) (all []string) {
	set := service(text)
	for k, want := range sandbox {
		if values, ok := set[k]; !ok || strings.Join(values, " ") != want {
			all = append(all, fmt.Sprintf("%s is %q, not %q", k, values, want))
		}
	}
	for _, k := range undone {
		if values, ok := set[k]; ok {
			all = append(all, fmt.Sprintf("%s is %q", k, values))
		}
	}
	for k, values := range set {
		for _, v := range values {
			if strings.HasPrefix(k, "Exec") && !strings.HasPrefix(v, "/") { // + and ! start it with all rights
				all = append(all, fmt.Sprintf("%s is %q", k, v))
			}
		}
	}
	slices.Sort(all)
	return all
}

// service returns the values of each directive of the unit's [Service], in their order.
func service(text string) map[string][]string {
	set := map[string][]string{}
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		k, v, ok := strings.Cut(line, "=")
		switch {
		case strings.HasPrefix(line, "["):
			section = line
		case ok && section == "[Service]" && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, ";"):
			set[k] = append(set[k], v)
		}
	}
	return set
}

func testSandbox(t *testing.T) {
	assert.Empty(t, gaps(string(readDeploy(t, unit))))
}

func testSandboxMissesNothing(t *testing.T) {
	text := string(readDeploy(t, unit))
	for line := range strings.Lines(text) {
		k, _, _ := strings.Cut(line, "=")
		if _, ok := sandbox[k]; ok {
			assert.NotEmpty(t, gaps(strings.Replace(text, line, "", 1)), "without %s", line)
			assert.NotEmpty(t, gaps(strings.Replace(text, line, "#"+line, 1)), "with #%s", line)
			assert.NotEmpty(t, gaps(strings.Replace(text, line, line+k+"=no\n", 1)), "%s and then another", line)
		}
	}
	for what, spoilt := range map[string]string{
		"a fixed user":       strings.Replace(text, "[Service]\n", "[Service]\nUser=root\n", 1),
		"a start with all":   strings.Replace(text, "ExecStart=/", "ExecStart=+/", 1),
		"in another place":   strings.Replace(text, "[Service]", "[Unit]", 1),
		"one more filter":    strings.Replace(text, "[Install]", "SystemCallFilter=@mount\n[Install]", 1),
		"writable elsewhere": strings.Replace(text, "[Install]", "ReadWritePaths=/\n[Install]", 1),
	} {
		require.NotEqual(t, text, spoilt, what)
		assert.NotEmpty(t, gaps(spoilt), what)
	}
}

// maxExposure is in tenths of what systemd-analyze says, where 100 is no sandbox at all.
// It says 1.1 for the unit; what is left is mostly that a relay needs the network.
const maxExposure = 20

// It only confirms what testSandbox finds, so it may be missing, in CI as well.
func testExposure(t *testing.T) {
	path, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Log("NOT CHECKED by systemd-analyze, which is not installed")
		return
	}
	args := []string{"security", "--no-pager", "--offline=true", fmt.Sprint("--threshold=", maxExposure), deploy + unit}
	out, err := exec.Command(path, args...).CombinedOutput()
	if strings.Contains(string(out), "unrecognized option") {
		t.Logf("NOT CHECKED, systemd-analyze is older than version 250: %s", out)
		return
	}
	require.NoError(t, err, "systemd-analyze %s: %s", strings.Join(args, " "), out)
	require.Contains(t, string(out), "Overall exposure level for cc-relay.service")
}
