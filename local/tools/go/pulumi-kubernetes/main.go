// Command pulumi-resource-kubernetes is Pulumi's own provider for Kubernetes: the repository's main needs files that
// its Go module leaves out, so this one takes the schema that the module has.
package main

import (
	_ "embed"

	"github.com/pulumi/pulumi-kubernetes/provider/v4/pkg/provider"
)

var version string

//go:embed schema.json
var schema []byte

//go:embed terraform-mapping.json
var terraformMapping []byte

func main() {
	provider.Serve("kubernetes", version, schema, terraformMapping)
}
