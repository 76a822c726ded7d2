// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	jsonpatch "github.com/evanphx/json-patch/v5"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// fakeAPIServer is an API server that stores objects in memory and authorizes each request by RBAC rules. It supports
// get, create, update, patch and delete of all objects, and list of Secrets by labels. It does not support watch.
type fakeAPIServer struct {
	*httptest.Server
	// rules are the permissions by namespace. Those under "" apply to all objects.
	rules map[string][]rbacv1.PolicyRule

	mu sync.Mutex // guards the fields below
	// objects are the stored objects by URL path.
	objects map[string]map[string]any
	// used are the permissions of all authorized requests, as returned by permission.
	used map[string]bool
	// denied are the requests that no rule permits, "verb group/resource namespace/name".
	denied []string
	// version is the last resourceVersion that was assigned.
	version int
}

// admissionDiscovery has the discovery documents that the admission requests, by URL path.
var admissionDiscovery = map[string]string{
	"/api":    `{"kind":"APIVersions","versions":["v1"]}`,
	"/api/v1": `{"kind":"APIResourceList","groupVersion":"v1","resources":[{"name":"secrets","kind":"Secret","namespaced":true},{"name":"namespaces","kind":"Namespace"}]}`,
	"/apis": `{"kind":"APIGroupList","apiVersion":"v1","groups":[
		{"name":"admissionregistration.k8s.io","versions":[{"groupVersion":"admissionregistration.k8s.io/v1","version":"v1"}]},
		{"name":"core.gardener.cloud","versions":[{"groupVersion":"core.gardener.cloud/v1beta1","version":"v1beta1"}]}]}`,
	"/apis/admissionregistration.k8s.io/v1": `{"kind":"APIResourceList","groupVersion":"admissionregistration.k8s.io/v1","resources":[
		{"name":"validatingwebhookconfigurations","kind":"ValidatingWebhookConfiguration"}]}`,
	"/apis/core.gardener.cloud/v1beta1": `{"kind":"APIResourceList","groupVersion":"core.gardener.cloud/v1beta1","resources":[
		{"name":"shoots","kind":"Shoot","namespaced":true}]}`,
}

func newFakeAPIServer(t *testing.T, rules map[string][]rbacv1.PolicyRule) *fakeAPIServer {
	t.Helper()
	s := &fakeAPIServer{rules: rules, objects: map[string]map[string]any{}, used: map[string]bool{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *fakeAPIServer) config() *rest.Config { return &rest.Config{Host: s.URL, QPS: -1} }

// kubeconfig writes a kubeconfig for the server to a file and returns its path.
func (s *fakeAPIServer) kubeconfig(t *testing.T) string {
	t.Helper()
	kubeconfig := clientcmdapi.NewConfig()
	kubeconfig.Clusters["c"] = &clientcmdapi.Cluster{Server: s.URL}
	kubeconfig.Contexts["c"] = &clientcmdapi.Context{Cluster: "c"}
	kubeconfig.CurrentContext = "c"
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*kubeconfig, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// put stores an object without authorization.
func (s *fakeAPIServer) put(path string, obj map[string]any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.store(path, obj)
}

// read decodes the object at path into obj. It returns false if there is no such object.
func (s *fakeAPIServer) read(t *testing.T, path string, obj any) bool {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	stored, ok := s.objects[path]
	if !ok {
		return false
	}
	raw, err := json.Marshal(stored)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, obj); err != nil {
		t.Fatal(err)
	}
	return true
}

// paths returns the paths of stored objects that contain part.
func (s *fakeAPIServer) paths(part string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for path := range s.objects {
		if strings.Contains(path, part) {
			all = append(all, path)
		}
	}
	return all
}

// permissions returns the used permissions, sorted, and the denied requests.
func (s *fakeAPIServer) permissions() (used, denied []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for permission := range s.used {
		used = append(used, permission)
	}
	slices.Sort(used)
	return used, slices.Clone(s.denied)
}

// store stores an object and sets the metadata that an API server sets. The caller holds mu.
func (s *fakeAPIServer) store(path string, obj map[string]any) {
	s.version++
	metadata, _ := obj["metadata"].(map[string]any)
	metadata["resourceVersion"] = fmt.Sprint(s.version)
	if metadata["uid"] == nil {
		metadata["uid"] = fmt.Sprint("uid-", s.version)
	}
	if metadata["creationTimestamp"] == nil {
		metadata["creationTimestamp"] = "2026-01-01T00:00:00Z"
	}
	s.objects[path] = obj
}

func (s *fakeAPIServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if document, ok := admissionDiscovery[r.URL.Path]; ok {
		io.WriteString(w, document)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err == nil {
		body, err = asJSON(body)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	code, response := s.handle(r, body)
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(response)
}

// asJSON converts a body to JSON. Clients send objects of Kubernetes' own types in protobuf.
func asJSON(body []byte) ([]byte, error) {
	if !bytes.HasPrefix(body, []byte("k8s\x00")) {
		return body, nil
	}
	obj, kind, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
	if err != nil {
		return nil, err
	}
	obj.GetObjectKind().SetGroupVersionKind(*kind)
	return json.Marshal(obj)
}

// handle processes a request for an object and returns the status code and body of the response. The caller holds mu.
func (s *fakeAPIServer) handle(r *http.Request, body []byte) (int, map[string]any) {
	group, namespace, resource, name := parsePath(r.URL.Path)
	verb := map[string]string{http.MethodGet: "get", http.MethodPost: "create", http.MethodPut: "update", http.MethodPatch: "patch", http.MethodDelete: "delete"}[r.Method]
	if verb == "get" && name == "" {
		verb = "list"
	}
	obj := map[string]any{}
	if verb == "create" || verb == "update" {
		if err := json.Unmarshal(body, &obj); err != nil {
			return statusFailure(http.StatusBadRequest, "BadRequest", err.Error())
		}
	}
	if !s.allowed(verb, group, namespace, resource, name) {
		s.denied = append(s.denied, verb+" "+group+"/"+resource+" "+namespace+"/"+name)
		return statusFailure(http.StatusForbidden, "Forbidden", "forbidden: "+verb+" "+r.URL.Path)
	}
	stored, exists := s.objects[r.URL.Path]
	switch {
	case verb == "list":
		items := []any{}
		for path, candidate := range s.objects {
			if filepath.Dir(path) == r.URL.Path && matchesSelector(candidate, r.URL.Query().Get("labelSelector")) {
				items = append(items, candidate)
			}
		}
		return http.StatusOK, map[string]any{"kind": "SecretList", "apiVersion": "v1", "metadata": map[string]any{}, "items": items}
	case verb == "create":
		metadata, _ := obj["metadata"].(map[string]any)
		path := r.URL.Path + "/" + fmt.Sprint(metadata["name"])
		if _, exists := s.objects[path]; exists {
			return statusFailure(http.StatusConflict, "AlreadyExists", path)
		}
		s.store(path, obj)
		return http.StatusCreated, obj
	case !exists:
		return statusFailure(http.StatusNotFound, "NotFound", r.URL.Path)
	case verb == "update":
		s.store(r.URL.Path, obj)
		return http.StatusOK, obj
	case verb == "patch":
		// All patches are applied as JSON merge patches, which replace whole lists. This is sufficient, because the lists
		// that the admission patches have only one element.
		raw, err := json.Marshal(stored)
		if err == nil {
			raw, err = jsonpatch.MergePatch(raw, body)
		}
		if err == nil {
			err = json.Unmarshal(raw, &obj)
		}
		if err != nil {
			return statusFailure(http.StatusBadRequest, "BadRequest", err.Error())
		}
		s.store(r.URL.Path, obj)
		return http.StatusOK, obj
	case verb == "delete":
		delete(s.objects, r.URL.Path)
		return http.StatusOK, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Success"}
	}
	return http.StatusOK, stored
}

// allowed reports whether a rule permits the request, and records the permission as used. The caller holds mu.
func (s *fakeAPIServer) allowed(verb, group, namespace, resource, name string) bool {
	for _, rule := range slices.Concat(s.rules[""], s.rules[namespace]) {
		if slices.Contains(rule.Verbs, verb) && slices.Contains(rule.APIGroups, group) && slices.Contains(rule.Resources, resource) &&
			(len(rule.ResourceNames) == 0 || slices.Contains(rule.ResourceNames, name)) {
			s.used[permission(verb, group, resource)] = true
			return true
		}
	}
	return false
}

// permission returns "verb group/resource".
func permission(verb, group, resource string) string { return verb + " " + group + "/" + resource }

// parsePath splits a path of the form /api/v1/... or /apis/group/version/... into its parts.
func parsePath(path string) (group, namespace, resource, name string) {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	if parts[0] == "apis" {
		group, parts = parts[1], parts[3:]
	} else {
		parts = parts[2:]
	}
	if parts[0] == "namespaces" && len(parts) > 2 {
		namespace, parts = parts[1], parts[2:]
	}
	if len(parts) > 1 {
		name = parts[1]
	}
	return group, namespace, parts[0], name
}

// matchesSelector supports label selectors of the form a=b,c=d.
func matchesSelector(obj map[string]any, selector string) bool {
	metadata, _ := obj["metadata"].(map[string]any)
	labels, _ := metadata["labels"].(map[string]any)
	for requirement := range strings.SplitSeq(selector, ",") {
		if key, value, ok := strings.Cut(requirement, "="); ok && labels[key] != value {
			return false
		}
	}
	return true
}

// statusFailure returns the status code and a Status object.
func statusFailure(code int, reason, message string) (int, map[string]any) {
	return code, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message}
}
