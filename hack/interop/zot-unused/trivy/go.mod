// Replaces a module that zot imports only with build tags.
module github.com/aquasecurity/trivy

go 1.19
