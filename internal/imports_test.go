// Package internal_test guards who may import whom, and what the program is built with
// and of; there is no package internal.
package internal_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const module = "cc-relay"

// allowed says which of our packages each package under internal/ may import
// outside its tests. Leaves stay leaves, the request path calls downwards only,
// and configuration knows the parts but no part knows the configuration.
var allowed = map[string][]string{
	"internal/secret":    {},
	"internal/state":     {},
	"internal/messages":  {"internal/secret"},
	"internal/ratelimit": {"internal/secret"},
	"internal/auth":      {"internal/secret"},
	"internal/health":    {},
	"internal/metrics":   {},
	"internal/keypool":   {"internal/ratelimit", "internal/secret"},
	"internal/http1":     {},
	"internal/trace":     {"internal/secret"},
	"internal/price":     {"internal/keypool"}, // its patterns of models' names
	"internal/provider":  {"internal/http1", "internal/messages", "internal/secret"},
	"internal/router":    {"internal/provider", "internal/keypool", "internal/health", "internal/price"},
	"internal/proxy": {
		"internal/health", "internal/router", "internal/keypool", "internal/ratelimit", "internal/provider",
		"internal/messages", "internal/auth", "internal/secret",
		"internal/metrics", "internal/trace",
	},
	"internal/admin": {
		"internal/router", "internal/keypool", "internal/health", "internal/ratelimit", "internal/state",
	},
	// For their Config types.
	"internal/config": {
		"internal/keypool", "internal/provider", "internal/router", "internal/auth",
		"internal/proxy", "internal/ratelimit", "internal/secret", "internal/price",
	},
	// A simulator built on the limiter under test would prove nothing.
	"internal/simulator": {"internal/messages"},
}

// imports maps a package to the packages of ours it imports, both as paths
// inside the module.
type imports map[string][]string

func TestPackagesImportOnlyWhatTheTableAllows(t *testing.T) {
	got := listImports(t)
	require.Contains(t, got, "internal/secret", "go list found none of our packages")
	require.Contains(t, got["internal/auth"], "internal/secret", "go list found no imports")
	assert.Empty(t, violations(got))
}

func TestViolations(t *testing.T) {
	const addIt = "internal/fresh is new: add it to the table in internal/imports_test.go"
	for name, tc := range map[string]struct {
		graph imports
		want  []string
	}{
		"as the table says": {imports{
			"cmd/cc-relay":    {"internal/config", "internal/proxy", "internal/simulator"},
			"bench":           {"internal/simulator"},
			"internal":        nil,
			"internal/proxy":  {"internal/router", "internal/secret"},
			"internal/router": {"internal/provider"},
		}, nil},
		"unknown package": {imports{"internal/fresh": nil}, []string{addIt}},
		"unknown package is named once, however much it imports": {
			imports{"internal/fresh": {"internal/proxy", "internal/config"}}, []string{addIt},
		},
		"unknown package below a known one": {imports{"internal/proxy/fresh": nil},
			[]string{"internal/proxy/fresh is new: add it to the table in internal/imports_test.go"}},
		"leaf imports a sibling": {imports{"internal/messages": {"internal/auth"}},
			[]string{"internal/messages may not import internal/auth"}},
		"secret imports anything": {imports{"internal/secret": {"internal/messages"}},
			[]string{"internal/secret may not import internal/messages"}},
		"a call upwards": {imports{"internal/keypool": {"internal/router"}},
			[]string{"internal/keypool may not import internal/router"}},
		"the simulator uses the limiter": {imports{"internal/simulator": {"internal/ratelimit"}},
			[]string{"internal/simulator may not import internal/ratelimit"}},
		"configuration imported by a part": {imports{"internal/proxy": {"internal/config"}},
			[]string{"internal/proxy may not import internal/config"}},
		"command imported from inside": {imports{"internal/proxy": {"cmd/cc-relay"}},
			[]string{"internal/proxy may not import cmd/cc-relay"}},
		"what benches share": {imports{"bench/fault": {"bench/rig", "internal/simulator"}}, nil},
		"what benches share, from inside": {imports{"internal/proxy": {"bench/rig"}},
			[]string{"internal/proxy may not import bench/rig"}},
		"command imported from outside": {imports{"bench": {"cmd/cc-relay"}},
			[]string{"bench may not import cmd/cc-relay"}},
		"every violation, in order": {imports{
			"internal/router": {"internal/proxy", "internal/auth"},
			"internal/auth":   {"internal/messages"},
		}, []string{
			"internal/auth may not import internal/messages",
			"internal/router may not import internal/auth",
			"internal/router may not import internal/proxy",
		}},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, tc.want, violations(tc.graph)) })
	}
}

// Every row of the table must be able to fail: whatever a row does not list is refused.
func TestEveryRowRefusesWhatItDoesNotList(t *testing.T) {
	for pkg, may := range allowed {
		for dep := range allowed {
			if dep == pkg {
				continue
			}
			got := violations(imports{pkg: {dep}})
			assert.Equal(t, slices.Contains(may, dep), len(got) == 0, "%s imports %s: %v", pkg, dep, got)
		}
		assert.NotEmpty(t, violations(imports{pkg: {"cmd/cc-relay"}}), "%s imports the command", pkg)
		for _, dep := range may {
			assert.Contains(t, allowed, dep, "%s may import a package that has no row", pkg)
		}
	}
}

// violations returns one sorted line for each import the table forbids and each
// package under internal/ it does not know. Packages elsewhere (cmd, bench) may
// import everything under internal/ and are imported by nobody, but for shared.
func violations(graph imports) []string {
	var found []string
	for _, pkg := range slices.Sorted(maps.Keys(graph)) {
		may, known := allowed[pkg]
		if inside(pkg) && !known {
			found = append(found, pkg+" is new: add it to the table in internal/imports_test.go")
			continue
		}
		for _, dep := range slices.Sorted(slices.Values(graph[pkg])) {
			if inside(pkg) && slices.Contains(may, dep) || !inside(pkg) && (inside(dep) || dep == shared) {
				continue
			}
			found = append(found, fmt.Sprintf("%s may not import %s", pkg, dep))
		}
	}
	return found
}

// shared is what the benches have in common.
const shared = "bench/rig"

func inside(pkg string) bool { return strings.HasPrefix(pkg, "internal/") }

// listImports asks the go command, which needs no network for it.
func listImports(t *testing.T) imports {
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Imports", module+"/...")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "go list: %s", &stderr)

	graph := imports{}
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var p struct {
			ImportPath, Dir string
			Imports         []string
		}
		require.NoError(t, dec.Decode(&p))
		// The test cache knows only what this process reads: without this a stale
		// pass would hide an import added later.
		_, err := os.ReadDir(p.Dir)
		require.NoError(t, err)
		pkg, _ := ours(p.ImportPath)
		graph[pkg] = nil
		for _, path := range p.Imports {
			if dep, ok := ours(path); ok {
				graph[pkg] = append(graph[pkg], dep)
			}
		}
	}
	return graph
}

// ours gives the path inside the module, "." for its root; false if path is not of this module.
func ours(path string) (string, bool) {
	if path == module {
		return ".", true
	}
	return strings.CutPrefix(path, module+"/")
}
